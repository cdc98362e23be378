# The addon: one shared object, linked against the system's libbpf. Warnings are errors in our own sources; the headers
# of Node and node-addon-api are taken as system headers so that theirs are not ours.
{
  "targets": [
    {
      "target_name": "enforcer_native",
      "sources": [
        "src/addon.cc", "src/args.cc", "src/error.cc", "src/poll.cc",
        "src/object.cc", "src/layout.cc", "src/map.cc", "src/unwaited.cc", "src/program.cc", "src/link.cc", "src/tc.cc", "src/ring.cc",
        "src/netlink.cc", "src/netns.cc", "src/system.cc", "src/udp.cc", "src/tap.cc", "src/pump.cc", "src/splice.cc", "src/verify.cc",
      ],
      # In a worker that is being terminated nothing can be thrown any more; that is not a fault (SWALLOW_UNTHROWABLE).
      "defines": [
        "NAPI_VERSION=8", "NAPI_DISABLE_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "NODE_ADDON_API_DISABLE_DEPRECATED", "_GNU_SOURCE",
      ],
      "cflags": ["-fvisibility=hidden"],
      "cflags_cc": [
        "-std=gnu++17", "-fno-exceptions", "-O2", "-Wall", "-Wextra", "-Werror",
        "-isystem", "<!(node -p \"path.dirname(require.resolve('node-addon-api'))\")",
        "<!@(pkg-config --cflags libbpf)",
      ],
      "libraries": ["<!@(pkg-config --libs libbpf)"],
    },
  ],
}
