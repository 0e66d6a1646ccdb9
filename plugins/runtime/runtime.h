/*
 * Masks from a bundle `NAME.nrd` in a C++ program, without Python:
 *
 *     nrd::Engine engine("street.nrd");
 *     engine.segment({image.data(), height, width}, {mask.data(), height, width});
 *
 * This header needs neither TensorRT nor CUDA; the library links both.
 */
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define NRD_RUNTIME_API __attribute__((visibility("default")))

namespace nrd
{

//! What an error is about, for programs; its text is for people.
enum class Fault
{
    kARGUMENT, //!< an argument of the call
    kBUNDLE,   //!< a file of the bundle is missing, damaged, edited or of another schema
    kHOST,     //!< the bundle is sound, but not for this machine, this TensorRT or this library
    kPLUGIN,   //!< the plugin library is missing, or not the one that the plan was built with
    kRUNTIME,  //!< CUDA or TensorRT refused a call
};

//! What every function here throws; its text says what, expected and got, and what to do. It is an exception, as in
//! OpenCV and rclcpp: opening fails in many ways, and no half-open engine may come of it.
class NRD_RUNTIME_API Error : public std::runtime_error
{
public:
    Error(Fault about, std::string const& text)
        : std::runtime_error(text)
        , fault(about)
    {
    }

    Fault const fault;
};

struct Settings
{
    //! The plugin library of the plan's build, which is opened if its SHA-256 is the recorded one; where this is empty,
    //! the one that NRD_TRT_PLUGIN names, or else the one that was installed beside this library.
    std::string plugin;
    int32_t device{0};    //!< number of the GPU
    bool cudaGraph{true}; //!< replay runs as a CUDA graph; where that is refused, `warn` is told and runs go on without
    std::function<void(std::string const&)> warn; //!< gets warnings instead of stderr; must not throw
};

//! Pixels in host memory, row after row.
template <typename T>
struct View
{
    T* data;
    int32_t height;
    int32_t width;
    size_t stride{0}; //!< bytes from one row to the next; 0 where nothing is between them
};

using Image = View<uint8_t const>; //!< three bytes a pixel: red, green, blue
using Mask = View<uint8_t>;        //!< one byte a pixel: the number of its class

//! What the bundle says.
struct Info
{
    int32_t height; //!< of images and masks; the usual one where the plan takes several
    int32_t width;
    std::vector<std::string> classNames;
    std::vector<std::array<uint8_t, 3>> palette; //!< colour of each class
    bool cudaGraph;                              //!< whether runs are replayed as a CUDA graph
};

//! A plan on one GPU, ready to run: its memory is allocated and its graph captured. One thread at a time may use it,
//! whichever; several engines may run at once. A call makes its GPU the current one of the calling thread.
class NRD_RUNTIME_API Engine
{
public:
    //! Check a bundle, this machine and the plugin, load the plan and run it once on a black image. Files are compared
    //! with their SHA-256 before they are used; that tells that a bundle is whole, not whose it is.
    explicit Engine(std::string const& bundle, Settings const& settings = {});
    ~Engine();

    Info const& info() const noexcept;

    //! Copy an image of the engine's size in, run, and copy its mask out; returns when it is there.
    void segment(Image const& rgb, Mask const& mask);

    //! The same without copies on the host: fill `input` (page-locked, 3 * width bytes a row), then `run` returns the
    //! mask (width bytes a row), which stays until the next run.
    uint8_t* input() noexcept;
    uint8_t const* run();

private:
    struct Impl;
    std::unique_ptr<Impl> mImpl;
};

} // namespace nrd
