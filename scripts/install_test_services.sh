#!/usr/bin/env bash
# Install what tests need that pip does not have: GStreamer with an RTSP server and a browser, which the tests of video run
# for real, and what the runtime library for C++ is compiled with.
# Does nothing where all are there. Where it cannot install them it says so and succeeds: those tests skip then.
set -euo pipefail

# -tools and -base run pipelines, -good has RTSP and MP4, -bad parses H.264, -ugly encodes it and -libav decodes it.
packages=(
    chromium python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-tools gstreamer1.0-libav
    gstreamer1.0-plugins-{base,good,bad,ugly}
    nlohmann-json3-dev libssl-dev pkg-config
)

all_there() {
    local program element
    for program in gst-launch-1.0 gst-inspect-1.0; do
        command -v "$program" || return
    done
    command -v chromium || command -v chromium-browser || command -v google-chrome || return
    for element in videotestsrc matroskamux rtspsrc h264parse x264enc avdec_h264; do
        gst-inspect-1.0 --exists "$element" || return
    done
    [ -f /usr/include/nlohmann/json.hpp ] && [ -f /usr/include/openssl/evp.h ] && command -v pkg-config || return
    /usr/bin/python3 -c "import gi; gi.require_version('GstRtspServer', '1.0')"
}

give_up() {
    echo "Test services are not installed ($1); their tests skip and say what they need."
    exit 0
}

! all_there > /dev/null 2>&1 || exit 0
command -v apt-get > /dev/null || give_up "no apt-get"
[ "$(id -u)" = 0 ] || give_up "not root: sudo $0"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o Acquire::http::Timeout=20 update > /dev/null 2>&1 || give_up "apt-get update failed"
apt-get -qq install --yes --no-install-recommends "${packages[@]}" > /dev/null 2>&1 || give_up "apt-get install failed"
