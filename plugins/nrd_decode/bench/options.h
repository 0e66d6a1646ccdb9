/*
 * The command line.
 */
#pragma once

#include "values.h"

#include <algorithm>

namespace nrd::bench
{

constexpr char const* kUSAGE = R"(nrd_decode_bench: correctness, then time of the decode kernels on the current GPU.

  --quick            fewer settings and replays; about a minute
  --json FILE        also write every figure to FILE, anew after each setting
  --limit SECONDS    begin no setting after that time; what is left out is told and is no error
  --case HxWxK       image size and classes; may be repeated; replaces the four that are measured otherwise
  --groups A,B       of checks, cases, layouts, fp32, logits, pixels, classes; otherwise all
  --theta FILE       measure this theta only: fp16 (P, H/32, W/32), for the one --case that goes with it
  --guidance FILE    with --theta: fp16 (16, H/4, W/4); otherwise smooth noise
  --tables FILE      with --theta: 8 x and 8 y coordinates, fp32; otherwise i/8
  --help             this text

Exits 0 when all is right, 1 when a result is wrong or CUDA failed, 2 where there is no GPU or an argument is wrong.
)";

constexpr char const* kGROUPS[] = {"checks", "cases", "layouts", "fp32", "logits", "pixels", "classes"};

struct Options
{
    bool help = false;
    bool quick = false;
    int32_t limitSeconds = 0; //!< 0: none
    std::string json;
    std::vector<Case> cases;
    std::vector<std::string> groups; //!< empty: all
    std::string theta;
    std::string guidance;
    std::string tables;

    bool wants(std::string const& group) const
    {
        return groups.empty() || std::find(groups.begin(), groups.end(), group) != groups.end();
    }
};

inline std::vector<std::string> splitAt(std::string const& text, char separator)
{
    std::vector<std::string> parts{""};
    for (char const c : text)
    {
        if (c == separator)
        {
            parts.emplace_back();
        }
        else
        {
            parts.back() += c;
        }
    }
    return parts;
}

//! A number of up to six digits, or -1.
inline int32_t parseNumber(std::string const& text)
{
    bool const isNumber
        = !text.empty() && text.size() <= 6 && text.find_first_not_of("0123456789") == std::string::npos;
    return isNumber ? std::stoi(text) : -1;
}

inline Case parseCase(std::string const& text)
{
    std::vector<std::string> const parts = splitAt(text, 'x');
    Case const result = parts.size() == 3 ? Case{parseNumber(parts[0]), parseNumber(parts[1]), parseNumber(parts[2])}
                                          : Case{-1, -1, -1};
    auto const fits = [](int32_t side)
    {
        return side > 0 && side <= 16384 && side % kSTRIDE == 0;
    };
    if (!fits(result.height) || !fits(result.width) || result.classes < 2 || result.classes > kMAX_CLASSES)
    {
        throw UsageError("--case: got '" + text
            + "', expected HEIGHTxWIDTHxCLASSES, sides multiples of 32 up to 16384, 2 to 256 classes");
    }
    return result;
}

inline std::vector<std::string> parseGroups(std::string const& text)
{
    std::vector<std::string> groups = splitAt(text, ',');
    for (std::string const& group : groups)
    {
        if (std::find(std::begin(kGROUPS), std::end(kGROUPS), group) == std::end(kGROUPS))
        {
            throw UsageError(
                "--groups: got '" + group + "', expected some of checks,cases,layouts,fp32,logits,pixels,classes");
        }
    }
    return groups;
}

inline int32_t parseLimit(std::string const& text)
{
    int32_t const seconds = parseNumber(text);
    if (seconds < 1)
    {
        throw UsageError("--limit: got '" + text + "', expected whole seconds, 1 or more");
    }
    return seconds;
}

inline void checkTogether(Options const& options)
{
    if (options.theta.empty() && !(options.guidance.empty() && options.tables.empty()))
    {
        throw UsageError("--guidance and --tables: expected together with --theta");
    }
    if (!options.theta.empty() && (options.cases.size() != 1 || !options.groups.empty()))
    {
        throw UsageError("--theta: expected one --case, which gives its sizes, and no --groups");
    }
}

inline Options parseOptions(std::vector<std::string> const& arguments)
{
    Options options;
    for (size_t i = 0; i < arguments.size(); ++i)
    {
        std::string const& name = arguments[i];
        if (name == "--help" || name == "--quick")
        {
            (name == "--help" ? options.help : options.quick) = true;
            continue;
        }
        std::string* const text = name == "--json" ? &options.json
            : name == "--theta"                    ? &options.theta
            : name == "--guidance"                 ? &options.guidance
            : name == "--tables"                   ? &options.tables
                                                   : nullptr;
        if (text == nullptr && name != "--case" && name != "--groups" && name != "--limit")
        {
            throw UsageError("'" + name + "': no such option; --help lists them");
        }
        if (++i == arguments.size())
        {
            throw UsageError(name + ": expected a value after it");
        }
        if (text != nullptr)
        {
            *text = arguments[i];
        }
        else if (name == "--case")
        {
            options.cases.push_back(parseCase(arguments[i]));
        }
        else if (name == "--limit")
        {
            options.limitSeconds = parseLimit(arguments[i]);
        }
        else
        {
            options.groups = parseGroups(arguments[i]);
        }
    }
    checkTogether(options);
    return options;
}

//! The files of --theta and its companions.
inline FileValues readValues(Options const& options)
{
    if (options.theta.empty())
    {
        return {};
    }
    Setting setting;
    setting.size = options.cases[0];
    std::string const sizes = options.cases[0].image() + ", K = " + std::to_string(setting.size.classes);
    FileValues values;
    values.theta
        = readFile<uint16_t>(options.theta, setting.patches() * setting.channels(), "fp16 (P, H/32, W/32) of " + sizes);
    if (!options.guidance.empty())
    {
        values.guidance
            = readFile<uint16_t>(options.guidance, setting.cells() * kWIDTH, "fp16 (16, H/4, W/4) of " + sizes);
    }
    if (!options.tables.empty())
    {
        values.tables = readFile<float>(options.tables, 2 * kPATCH, "fp32, 8 x and 8 y coordinates");
    }
    return values;
}

} // namespace nrd::bench
