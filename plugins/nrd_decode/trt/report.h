/*
 * Where the plugin's messages go: the error recorder and the logger of TensorRT, or stderr.
 *
 * TensorRT 11 moved `ILoggerFinder::findLogger`, `ILogger::log` and the methods of `IPluginRegistry` to other slots of
 * their virtual tables. A library may be loaded by a runtime of another major than that of its headers; those objects
 * must not be called then, and messages go to stderr. `IErrorRecorder` has the same table in both.
 */
#pragma once

#include <NvInferRuntime.h>

#include <stdexcept>
#include <string>

namespace nrd
{

//! What is wrong: "<attribute or tensor>: got ..., expected ...".
class Fault : public std::runtime_error
{
public:
    Fault(nvinfer1::ErrorCode code, std::string const& text)
        : std::runtime_error(text)
        , mCode(code)
    {
    }

    nvinfer1::ErrorCode code() const noexcept
    {
        return mCode;
    }

private:
    nvinfer1::ErrorCode mCode;
};

[[noreturn]] inline void refuse(std::string const& text)
{
    throw Fault(nvinfer1::ErrorCode::kINVALID_ARGUMENT, text);
}

//! Major of the TensorRT in `library`, a handle of dlopen; 0 where there is none. TensorRT-RTX counts from 1.
int32_t runtimeMajor(void* library) noexcept;

//! Handle, to be closed by the caller, of the library that `address` lies in; nullptr where it cannot be had.
void* libraryOf(void const* address) noexcept;

//! Use the logger and the registry of the runtime that `finder` comes from, if its major is that of our headers; else
//! forget those of an earlier one. nullptr forgets too.
void adoptFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! The same for a runtime of which only the library is known; its major must be ours.
void adoptLibrary(void* library) noexcept;

//! Report "<subject>: <what>" to `recorder`, where it is nullptr to the registry's, and to the logger, else to stderr.
void reportError(
    nvinfer1::ErrorCode code, char const* subject, char const* what, nvinfer1::IErrorRecorder* recorder) noexcept;

//! Tell what is no error: the logger, else stderr.
void reportWarning(char const* subject, char const* what) noexcept;

//! Run `action` and return 0, or report what it throws and return -1: nothing may leave a plugin's method.
template <typename TAction>
int32_t guarded(char const* subject, nvinfer1::IErrorRecorder* recorder, TAction const& action) noexcept
{
    try
    {
        action();
        return 0;
    }
    catch (Fault const& fault)
    {
        reportError(fault.code(), subject, fault.what(), recorder);
    }
    catch (std::exception const& exception)
    {
        reportError(nvinfer1::ErrorCode::kUNSPECIFIED_ERROR, subject, exception.what(), recorder);
    }
    catch (...)
    {
        reportError(nvinfer1::ErrorCode::kUNSPECIFIED_ERROR, subject, "unknown exception", recorder);
    }
    return -1;
}

} // namespace nrd
