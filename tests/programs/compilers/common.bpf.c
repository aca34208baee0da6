// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* A tentative definition, to which compilers gave no section before clang 11. */
#include "../bpf.h"

LICENSE;

int co_tentative;

SEC("socket")
int common(void *ctx)
{
	return co_tentative;
}
