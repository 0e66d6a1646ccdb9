"""An RTSP server of drawn pictures, for the system's Python: ``rtsp_server.py PORT [USER PASSWORD]``."""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PICTURES = (
    "( videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=25/1 ! "
    "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 )"
)


def protect(server, factory, user, password):
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for action in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role("viewer", action, True)
    factory.set_permissions(permissions)


def main(port, *login):
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PICTURES)
    factory.set_shared(True)
    if login:
        protect(server, factory, *login)
    server.get_mount_points().add_factory("/street", factory)
    server.attach(None)
    GLib.MainLoop().run()


main(*sys.argv[1:])
