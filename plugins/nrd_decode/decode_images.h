/*
 * The compiled kernels that a library carries.
 */
#pragma once

#include <cstdint>
#include <string>

namespace nrd
{

//! decode_kernel.cu, compiled for one architecture.
struct Image
{
    int32_t architecture; //!< compute capability without its point: 87
    bool isPtx;           //!< which newer GPUs compile on loading, and whose text ends with a zero
    void const* data;
};

struct Images
{
    Image const* first;
    int32_t count;

    Image const* begin() const
    {
        return first;
    }
    Image const* end() const
    {
        return first + count;
    }
};

//! Those of this library, cubins before PTX, each from older to newer.
Images images();

//! Architectures of the cubins, or of the PTX, as "75,80".
inline std::string listArchitectures(bool isPtx)
{
    std::string list;
    for (Image const& image : images())
    {
        if (image.isPtx == isPtx)
        {
            list += (list.empty() ? "" : ",") + std::to_string(image.architecture);
        }
    }
    return list;
}

} // namespace nrd
