// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* Proves: an object without program, map and data is refused, and says why. */
#include "bpf.h"

LICENSE;
