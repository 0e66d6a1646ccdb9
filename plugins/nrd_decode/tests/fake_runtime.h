/*
 * A shared library that a plugin takes for a TensorRT runtime of any version: what `setLoggerFinder` looks at, and a
 * logger that keeps what it is told.
 */
#pragma once

#include <NvInferRuntime.h>

extern "C"
{
    //! As TensorRT's: 110400 is 11.4.0.
    int32_t getInferLibVersion() noexcept;

    void setFakeVersion(int32_t version);

    //! A finder whose virtual table lies in this library; asking it twice gives the same one.
    nvinfer1::ILoggerFinder* fakeFinder();

    //! All that the logger was told since the last call, one message per line; valid until the next call.
    char const* takeFakeLog();
}
