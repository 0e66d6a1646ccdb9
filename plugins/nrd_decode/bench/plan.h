/*
 * What is measured, group by group.
 */
#pragma once

#include "options.h"

namespace nrd::bench
{

struct Subject
{
    std::string group;
    Setting setting;
    std::vector<Job> jobs; //!< those without tensor cores first: the others are compared with them
};

constexpr Variant kGENERIC_AND_FIXED[] = {Variant::kSIMT, Variant::kGENERIC, Variant::kTENSOR_CORE};
constexpr MaskType kMASK_TYPES[] = {MaskType::kUINT8, MaskType::kINT32, MaskType::kHALF};
constexpr Layout kLAYOUTS[] = {Layout::kCHANNELS_LAST, Layout::kPLANAR};
constexpr ElementType kTYPES[] = {ElementType::kHALF, ElementType::kBFLOAT16, ElementType::kFLOAT};

class Plan
{
public:
    explicit Plan(Options const& options)
        : mOptions(options)
        , mCases(options.cases)
    {
        if (mCases.empty())
        {
            mCases = {{1024, 2048, 19}, {512, 1024, 19}, {512, 512, 150}, {1024, 2048, 150}};
        }
    }

    std::vector<Subject> make()
    {
        if (!mOptions.theta.empty())
        {
            add("file", {mCases[0], 1, ElementType::kHALF, Origin::kFILE}, masks(true, true));
            return std::move(mSubjects);
        }
        addChecks();
        addCases();
        addLayouts();
        addSinglePrecision();
        addLogits();
        addSweeps();
        return std::move(mSubjects);
    }

private:
    void add(char const* group, Setting const& setting, std::vector<Job> jobs)
    {
        if (mOptions.theta.empty() ? mOptions.wants(group) : true)
        {
            mSubjects.push_back({group, setting, std::move(jobs)});
        }
    }

    //! Masks as uint8 by every variant.
    static std::vector<Job> masks(bool generic, bool unpruned)
    {
        std::vector<Job> jobs;
        for (Variant const variant : kGENERIC_AND_FIXED)
        {
            for (bool const prune : {true, false})
            {
                if ((prune || unpruned) && (generic || variant != Variant::kGENERIC))
                {
                    jobs.push_back({Op::kMASK, MaskType::kUINT8, variant, prune, true});
                }
            }
        }
        return jobs;
    }

    static std::vector<Job> logits()
    {
        std::vector<Job> jobs;
        for (Variant const variant : kGENERIC_AND_FIXED)
        {
            jobs.push_back({Op::kLOGITS, MaskType::kUINT8, variant, true, true});
        }
        return jobs;
    }

    //! Small images held against the host reference on every pixel: all types, layouts, variants and mask types.
    void addChecks()
    {
        std::vector<Job> jobs = logits();
        for (Variant const variant : kGENERIC_AND_FIXED)
        {
            for (MaskType const maskType : kMASK_TYPES)
            {
                jobs.push_back({Op::kMASK, maskType, variant, true, true});
                jobs.push_back({Op::kMASK, maskType, variant, false, true});
            }
        }
        for (Job& job : jobs)
        {
            job.timed = false;
        }
        for (int32_t const classes : {19, 150})
        {
            for (ElementType const type : kTYPES)
            {
                for (Layout const theta : kLAYOUTS)
                {
                    for (Layout const guidance : kLAYOUTS)
                    {
                        add("checks", {{96, 160, classes}, 2, type, Origin::kRANDOM, theta, guidance}, jobs);
                    }
                }
            }
        }
    }

    void addCases()
    {
        for (Case const& size : mCases)
        {
            for (ElementType const type : {ElementType::kHALF, ElementType::kBFLOAT16})
            {
                for (int32_t const batch : {1, 8})
                {
                    for (Origin const origin : {Origin::kRANDOM, Origin::kNATURAL})
                    {
                        bool const isMain = type == ElementType::kHALF && batch == 1;
                        bool const isRandom = origin == Origin::kRANDOM;
                        if (!mOptions.quick || type == ElementType::kHALF || (batch == 1 && isRandom))
                        {
                            add("cases", {size, batch, type, origin},
                                masks(!mOptions.quick || (isMain && isRandom), !mOptions.quick || isMain));
                        }
                    }
                }
            }
        }
    }

    void addLayouts()
    {
        std::vector<Job> jobs;
        for (Job const& job : masks(false, false))
        {
            for (MaskType const maskType : kMASK_TYPES)
            {
                jobs.push_back(job);
                jobs.back().maskType = maskType;
            }
        }
        for (size_t i = 0; i < mCases.size(); i += mOptions.quick ? mCases.size() : 2)
        {
            for (Layout const theta : kLAYOUTS)
            {
                for (Layout const guidance : kLAYOUTS)
                {
                    add("layouts", {mCases[i], 1, ElementType::kHALF, Origin::kRANDOM, theta, guidance}, jobs);
                }
            }
        }
    }

    void addSinglePrecision()
    {
        for (Origin const origin : {Origin::kRANDOM, Origin::kNATURAL})
        {
            add("fp32", {mCases[0], 1, ElementType::kFLOAT, origin}, masks(true, !mOptions.quick));
        }
    }

    void addLogits()
    {
        for (Case const& size : mCases)
        {
            add("logits", {size, 1, ElementType::kHALF}, logits());
        }
    }

    //! For the cost models: image sizes of 2 to 8 megapixels, and numbers of classes.
    void addSweeps()
    {
        constexpr int32_t kSIDES[][2] = {{1024, 2048}, {1536, 2048}, {2048, 2048}, {2048, 3072}, {2048, 4096}};
        for (auto const& side : kSIDES)
        {
            add("pixels", {{side[0], side[1], mCases[0].classes}, 1}, masks(false, false));
        }
        std::vector<int32_t> const classes = mOptions.quick ? std::vector<int32_t>{2, 19, 60, 150, 256}
                                                            : std::vector<int32_t>{2, 19, 32, 60, 100, 150, 200, 256};
        for (int32_t const k : classes)
        {
            add("classes", {{mCases[0].height, mCases[0].width, k}, 1}, masks(false, false));
        }
    }

    Options const& mOptions;
    std::vector<Case> mCases;
    std::vector<Subject> mSubjects;
};

} // namespace nrd::bench
