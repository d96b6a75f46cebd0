// In place of MLX's overloads for bfloat, which metal_math and metal_simdgroup have.
#pragma once
#include <metal_stdlib>
