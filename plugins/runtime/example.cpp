/*
 * A complete program: nrd_segment BUNDLE.nrd IMAGE.ppm MASK.pgm|MASK.ppm
 *
 * The image has the engine's size. The mask holds the numbers of the classes (PGM) or their colours (PPM). The exit
 * status is 0, or 2 with an error on stderr.
 */
#include <nrd_trt/runtime.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>

namespace
{

//! The next number of a PPM's header, whose comments reach from # to the end of their line.
int32_t numberOf(std::istream& file)
{
    while ((file >> std::ws).peek() == '#')
    {
        file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
    int32_t number = 0;
    file >> number;
    return number;
}

std::vector<uint8_t> readImage(std::string const& path, int32_t height, int32_t width)
{
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    file >> kind;
    int32_t const foundWidth = numberOf(file);
    int32_t const foundHeight = numberOf(file);
    int32_t const largest = numberOf(file);
    if (kind != "P6" || foundWidth != width || foundHeight != height || largest != 255)
    {
        throw std::runtime_error(path + ": expected a PPM (P6, 255) of " + std::to_string(width) + "x"
            + std::to_string(height) + " pixels, got another file; `convert IMAGE -resize " + std::to_string(width)
            + "x" + std::to_string(height) + "! " + path + "` makes one.");
    }
    file.get(); // one blank ends the header
    std::vector<uint8_t> pixels(3 * static_cast<size_t>(height) * static_cast<size_t>(width));
    if (!file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size())))
    {
        throw std::runtime_error(path + ": expected all of its pixels, got fewer; copy the file again.");
    }
    return pixels;
}

void writeMask(std::string const& path, std::vector<uint8_t> const& mask, nrd::Info const& info)
{
    bool const inColour = path.size() > 4 && path.compare(path.size() - 4, 4, ".ppm") == 0;
    std::ofstream file(path, std::ios::binary);
    file << (inColour ? "P6\n" : "P5\n") << info.width << " " << info.height << "\n255\n";
    for (uint8_t const number : mask)
    {
        auto const colour = info.palette.at(number);
        auto const* const first = inColour ? colour.data() : &number;
        file.write(reinterpret_cast<char const*>(first), inColour ? 3 : 1);
    }
    if (!file.flush())
    {
        throw std::runtime_error(path + ": expected room for the mask, got a failure; choose another folder.");
    }
}

} // namespace

int main(int count, char** arguments)
{
    if (count != 4)
    {
        std::fprintf(stderr, "usage: nrd_segment BUNDLE.nrd IMAGE.ppm MASK.pgm|MASK.ppm\n");
        return 2;
    }
    try
    {
        nrd::Engine engine(arguments[1]);
        nrd::Info const& info = engine.info();
        std::vector<uint8_t> const image = readImage(arguments[2], info.height, info.width);
        std::vector<uint8_t> mask(image.size() / 3);
        engine.segment({image.data(), info.height, info.width}, {mask.data(), info.height, info.width});
        writeMask(arguments[3], mask, info);
    }
    catch (std::exception const& error) // a robot looks at nrd::Error::fault
    {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
    return 0;
}
