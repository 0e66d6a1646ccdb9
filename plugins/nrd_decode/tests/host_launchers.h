/*
 * What the launchers of host_launchers.cpp were asked for.
 */
#pragma once

#include "decode_problem.h"

namespace nrd::test
{

//! Variant of the last launch.
Variant launchedVariant();

} // namespace nrd::test
