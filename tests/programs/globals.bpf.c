// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: each data section becomes a map with the initial contents, static
 * and global variables are found at their offsets, string literals work, and
 * variables set by name before load have the value set.
 */
#include "bpf.h"

LICENSE;

enum colour { RED = 3, GREEN = 5 };

struct shape {
	__u8 kind;
	/* Three bytes of padding. */
	__u32 width;
	__u64 area;
	char name[6];
};

/* .rodata: constants of every width. */
const volatile __u8 ro_u8 = 0x81;
const volatile __s16 ro_s16 = -2;
const volatile __u32 ro_u32 = 0x82838485;
const volatile __u64 ro_u64 = 0x8687888990919293;
const volatile bool ro_bool = true;
const volatile enum colour ro_colour = GREEN;
const volatile __u16 ro_array[5] = { 1, 2, 3, 4, 0xffff };
const volatile struct shape ro_shape = {
	.kind = 7, .width = 640, .area = 1ULL << 40, .name = "shape"
};
static const volatile __u32 ro_static = 0x1234;

/* .data */
__u32 rw_u32 = 17;
__u64 rw_array[3] = { 10, 20, 30 };
struct shape rw_shape = { .kind = 1, .width = 2, .area = 3, .name = "abc" };
static volatile __s64 rw_static = -5;

/* .bss, larger than a page. */
__u32 zero_u32;
__u8 zero_bytes[5000];
static volatile __u64 zero_static;

/* Sections of one's own, each a map of its own. */
const volatile __u32 ro_custom SEC(".rodata.custom") = 0xc0ffee;
__u32 rw_custom SEC(".data.custom") = 0xdecade;
__u32 zero_custom SEC(".bss.custom");

/* Counters of globals_count, for user space to read and set while it runs. */
__u64 count_data = 100;
__u64 count_bss;
__u64 count_custom SEC(".bss.custom");

/* Left alone by the loader, unless a test sets them by name. */
const volatile __u32 patched_u32 = 1;
const volatile __u8 patched_u8 = 1;
const volatile __u64 patched_array[2] = { 1, 1 };
__s32 patched_data = 1;
__u16 patched_bss;
const volatile __u32 patched_custom SEC(".rodata.custom") = 1;

/* Run it twice: it leaves the variables as it has found them. */
SEC("socket")
int globals_initial(struct __sk_buff *skb)
{
	const char *text = "manager";
	const char *other = "objects, maps and links";

	CHECK(ro_u8 == 0x81);
	CHECK(ro_s16 == -2);
	CHECK(ro_u32 == 0x82838485);
	CHECK(ro_u64 == 0x8687888990919293);
	CHECK(ro_bool == true);
	CHECK(ro_colour == GREEN);
	CHECK(ro_array[0] == 1 && ro_array[3] == 4 && ro_array[4] == 0xffff);
	CHECK(ro_shape.kind == 7 && ro_shape.width == 640);
	CHECK(ro_shape.area == 1ULL << 40 && ro_shape.name[4] == 'e');
	CHECK(ro_static == 0x1234);

	CHECK(READ_ONCE(rw_u32) == 17);
	rw_u32 = 18;
	CHECK(READ_ONCE(rw_u32) == 18);
	rw_u32 = 17;
	CHECK(READ_ONCE(rw_array[0]) == 10 && READ_ONCE(rw_array[2]) == 30);
	CHECK(READ_ONCE(rw_shape.kind) == 1 && READ_ONCE(rw_shape.area) == 3);
	CHECK(READ_ONCE(rw_shape.name[2]) == 'c');
	CHECK(rw_static == -5);
	rw_static = 6;
	CHECK(rw_static == 6);
	rw_static = -5;

	CHECK(READ_ONCE(zero_u32) == 0);
	CHECK(READ_ONCE(zero_bytes[0]) == 0 && READ_ONCE(zero_bytes[4999]) == 0);
	zero_bytes[4999] = 9;
	CHECK(READ_ONCE(zero_bytes[4999]) == 9 && READ_ONCE(zero_u32) == 0);
	zero_bytes[4999] = 0;
	CHECK(zero_static == 0);
	zero_static = 1;
	CHECK(zero_static == 1 && READ_ONCE(zero_u32) == 0);
	zero_static = 0;

	CHECK(ro_custom == 0xc0ffee);
	CHECK(READ_ONCE(rw_custom) == 0xdecade);
	CHECK(READ_ONCE(zero_custom) == 0);

	/* Literals lie in .rodata.str1.1, which BTF does not describe. */
	opaque(text);
	opaque(other);
	CHECK(text[0] == 'm' && text[6] == 'r' && text[7] == 0);
	CHECK(other[0] == 'o' && other[22] == 's' && other[23] == 0);

	CHECK(patched_u32 == 1 && patched_u8 == 1 && patched_custom == 1);
	CHECK(READ_ONCE(patched_data) == 1 && READ_ONCE(patched_bss) == 0);
	return 0;
}

/* Run after setting every `patched_` variable to the value asked for here. */
SEC("socket")
int globals_patched(struct __sk_buff *skb)
{
	CHECK(patched_u32 == 0xfeedface);
	CHECK(patched_u8 == 0xab);
	CHECK(patched_array[0] == 2 && patched_array[1] == 0x0102030405060708);
	CHECK(READ_ONCE(patched_data) == -77);
	CHECK(READ_ONCE(patched_bss) == 0xbeef);
	CHECK(patched_custom == 1000);
	/* The neighbours are untouched. */
	CHECK(ro_u8 == 0x81 && ro_u32 == 0x82838485 && ro_static == 0x1234);
	CHECK(READ_ONCE(rw_u32) == 17 && rw_static == -5);
	CHECK(READ_ONCE(zero_u32) == 0 && zero_static == 0);
	CHECK(ro_custom == 0xc0ffee);
	return 0;
}

SEC("socket")
int globals_count(struct __sk_buff *skb)
{
	atomic_add(&count_data, 1);
	atomic_add(&count_bss, 1);
	atomic_add(&count_custom, 1);
	return 0;
}
