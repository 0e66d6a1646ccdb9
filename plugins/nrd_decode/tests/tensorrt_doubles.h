/*
 * What TensorRT hands to a plugin, in small: expressions, error recorder, resource context, logger.
 */
#pragma once

#include <NvInferRuntime.h>

#include <deque>
#include <string>
#include <vector>

namespace nrd::test
{

//! A size that is a constant, or a value known at run time only.
class Expression final : public nvinfer1::IDimensionExpr, private nvinfer1::apiv::VDimensionExpr
{
public:
    Expression(int64_t value, bool constant)
        : mValue(value)
        , mConstant(constant)
    {
        mImpl = this;
    }

    //! The value it will have at run time, which a plugin cannot see.
    int64_t runtimeValue() const
    {
        return mValue;
    }

private:
    bool isConstant() const override
    {
        return mConstant;
    }

    int64_t getConstantValue() const override
    {
        return mConstant ? mValue : -1;
    }

    bool isSizeTensor() const override
    {
        return false;
    }

    int64_t mValue;
    bool mConstant;
};

//! Makes expressions and owns them. A product is constant when its factors are.
class ExpressionBuilder final : public nvinfer1::IExprBuilder, private nvinfer1::apiv::VExprBuilder
{
public:
    ExpressionBuilder()
    {
        mImpl = this;
    }

    nvinfer1::IDimensionExpr const* runtime(int64_t value)
    {
        return &mExpressions.emplace_back(value, false);
    }

    nvinfer1::IDimensionExpr const* known(int64_t value)
    {
        return &mExpressions.emplace_back(value, true);
    }

private:
    nvinfer1::IDimensionExpr const* constant(int64_t value) override
    {
        return known(value);
    }

    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& first,
        nvinfer1::IDimensionExpr const& second) override
    {
        if (op != nvinfer1::DimensionOperation::kPROD)
        {
            return nullptr; // the plugins multiply only
        }
        int64_t const value = valueOf(&first) * valueOf(&second);
        return &mExpressions.emplace_back(value, first.isConstant() && second.isConstant());
    }

    nvinfer1::IDimensionExpr const* declareSizeTensor(
        int32_t, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) override
    {
        return nullptr;
    }

public:
    static int64_t valueOf(nvinfer1::IDimensionExpr const* expression)
    {
        return static_cast<Expression const*>(expression)->runtimeValue();
    }

private:
    std::deque<Expression> mExpressions; // keeps addresses
};

class Recorder final : public nvinfer1::IErrorRecorder
{
public:
    int32_t getNbErrors() const noexcept override
    {
        return static_cast<int32_t>(mErrors.size());
    }

    nvinfer1::ErrorCode getErrorCode(int32_t index) const noexcept override
    {
        return mErrors[static_cast<size_t>(index)].first;
    }

    ErrorDesc getErrorDesc(int32_t index) const noexcept override
    {
        return mErrors[static_cast<size_t>(index)].second.c_str();
    }

    bool hasOverflowed() const noexcept override
    {
        return false;
    }

    void clear() noexcept override
    {
        mErrors.clear();
    }

    bool reportError(nvinfer1::ErrorCode code, ErrorDesc text) noexcept override
    {
        mErrors.emplace_back(code, text);
        return true;
    }

    RefCount incRefCount() noexcept override
    {
        return ++mReferences;
    }

    RefCount decRefCount() noexcept override
    {
        return --mReferences;
    }

    int32_t references() const
    {
        return mReferences;
    }

    //! The texts since the last call, one per line.
    std::string take()
    {
        std::string all;
        for (auto const& error : mErrors)
        {
            all += error.second + "\n";
        }
        mErrors.clear();
        return all;
    }

private:
    std::vector<std::pair<nvinfer1::ErrorCode, std::string>> mErrors;
    RefCount mReferences{0};
};

class ResourceContext final : public nvinfer1::IPluginResourceContext
{
public:
    explicit ResourceContext(nvinfer1::IErrorRecorder* recorder)
        : mRecorder(recorder)
    {
    }

    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override
    {
        return nullptr;
    }

    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return mRecorder;
    }

private:
    nvinfer1::IErrorRecorder* mRecorder;
};

} // namespace nrd::test
