// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Carries the shared types into BTF, and the settings that userspace fills in before load. */
#include "kernel.h"
#include "abi.h"

const volatile struct settings settings = {.abi_version = ABI_VERSION};
struct abi_types *abi_types = 0;
