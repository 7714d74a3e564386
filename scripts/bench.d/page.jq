# From scripts/bench's raw results to docs/benchmarks.md.
def shown($unit):
  if . == null then "–"
  elif $unit == "kB" then "\(round) kB"
  elif $unit == "/s" then "\(round) /s"
  elif $unit == "Mbit/s" and . >= 1000 then "\(. / 10 | round / 100) Gbit/s"
  elif $unit == "Mbit/s" then "\(round) Mbit/s"
  elif . >= 10000 then "\(. / 100 | round / 10) s"
  elif . >= 100 then "\(round) ms"
  elif . >= 10 then "\(. * 10 | round / 10) ms"
  else "\(. * 100 | round / 100) ms" end;
def ratio: if . == null or . < 0 then "–" elif . >= 10 then round elif . >= 0.1 then . * 100 | round / 100 else . * 1000 | round / 1000 end;
def cell: gsub("\\|"; "\\|");

.facts as $facts
| "# Benchmarks",
  "",
  "Written by `scripts/bench`, which installs the peers, builds the release profile and measures everything",
  "in one run as an unprivileged login. Trust the ratios more than the milliseconds.",
  (if $facts.quick == "1" then "\n**A quick run: too few runs to quote.**" else empty end),
  "",
  "| What | Selkie | Peer | Peer's | Selkie / peer | Target | Verdict |",
  "|---|---:|---|---:|---:|---|---|",
  (.rows[] | select(.table == "") | .unit as $unit
   | "| \(.what) | \(.ours | shown($unit)) | \(.peer_who) | \(.peer | shown($unit)) | \(.ratio | ratio) | \(.target) | \(.verdict) |"),
  "",
  "Times are medians over all rounds; contestants take turns round by round. Network is `none` where no other",
  "is named.",
  "",
  "- `crun`: as anybody would call it: a rootless bundle, the whole range mapped by `newuidmap`.",
  "- `crun-slice`: started inside Podman's user namespace with a user namespace and a slice of its own, maps",
  "  written without a helper: what Selkie does, minus joining, image, layer, names, `/etc` files, seccomp",
  "  filter, state and exit code.",
  "- `crun-bare`: started there without a user namespace of its own, the way Podman calls it: the least work",
  "  of the three.",
  "- `…-very-first`: the image was loaded and never run; `…-never-used`: it was run, in other slices;",
  "  `…-used`: in the slice that was used just before. Selkie leases the slice by itself; Podman is told it",
  "  by `--uidmap` and `--gidmap`.",
  "- `true` changes no file, so Selkie makes each container from what the one before has left (directory, layer",
  "  and overlay mount). A container that writes makes about twenty inodes more on disk and removes them",
  "  afterwards. Podman makes its files anew for each. Without a journal, ext4 does not reuse inodes deleted in",
  "  the last minutes and walks over them at each creation, so whoever makes files varies with what else is",
  "  deleted meanwhile, by the runs before and by others on the machine.",
  "- Memory: all private pages of every process an engine keeps per container, beside the workload itself.",
  "- Networks: the login is on a host made of namespaces, whose only way out is a veth to a second such host.",
  "- `default network, added`: the difference of two medians, to the same engine with `--network none`; what a",
  "  login has once (Selkie: the uplink and its pasta) runs already. What it takes to make that is in `the first",
  "  container on it after a login`, with the pause process and the image\u0027s metadata tree.",
  "- `user network, added`: another container is in it already, so the bridge, the name server and Podman\u0027s",
  "  own uplink are there. Peer\u0027s is netavark and all that Podman does around it.",
  "- Look-up: asked of the first name server in `resolv.conf` from inside a container, time of each query; the",
  "  first quarter is left out.",
  "- Memory on the default network: private pages of every process that is there for it (Selkie: monitors,",
  "  uplink, services, pasta) with 20 containers, less the same with none, less 20 with `--network none`.",
  (if $facts.absent != "" then "- Left out: \($facts.absent)" else empty end),
  "",
  (if any(.rows[]; .table == "traffic") then
  "## Traffic",
  "",
  "| What | Selkie | Peer | Peer\u0027s | Selkie / peer | Plain host | Target | Verdict |",
  "|---|---:|---|---:|---:|---:|---|---|",
  (.rows[] | select(.table == "traffic") | .unit as $unit
   | "| \(.what) | \(.ours | shown($unit)) | \(.peer_who) | \(.peer | shown($unit)) | \(.ratio | ratio) | \(.host | shown($unit)) | \(.target) | \(.verdict) |"),
  "",
  "More is better. One TCP connection for the rates, counted by who receives; four",
  "clients at once for connections, each connection asking for one byte. Out: from a container to the second",
  "host. In: from there to a published port. Plain host: the same without a container. Both ends are one",
  "program (`scripts/bench.d/traffic.c`) and share the machine\u0027s processors with whatever carries the packets.",
  "There are eight switches between the hosts, so that a round trip takes more than 10 µs: pasta treats what is",
  "nearer as if it were on its own host. Idle processors are kept from sleeping (`/dev/cpu_dma_latency`).",
  "Sending through pasta is a lottery even so (2025-05): the container\u0027s TCP now and then waits for a timer of",
  "200 ms before it goes on. TCP of Selkie\u0027s default and user networks does not go through pasta: the host\u0027s own",
  "TCP has both ends of it.",
  "The default network stands beside both what Podman takes by default (a pasta per container) and what Podman",
  "builds alike (its bridge network: all containers behind one pasta).",
  "With slirp4netns both publish ports beside it (`port_handler=rootlesskit`), which hides the client\u0027s address",
  "from the container; `port_handler=slirp4netns`, which does not, is not measured.",
  "`no worse` is met from 0.95 of the peer\u0027s on: pasta against pasta differs by that much and more from run to run.",
  "" else empty end),
  "## Machine and versions",
  "",
  "- \($facts.machine); \($facts.system); \($facts.disk)",
  "- cgroups: \($facts.cgroups); scheduling: \($facts.scheduling); load average \($facts.load)",
  "- Peers: \($facts.peers)",
  "- \($facts.versions | join("; ")); Podman's storage: \($facts.driver)",
  "- Selkie at commit \($facts.commit), \($facts.day)",
  "- Debian image: \(if $facts.files then "\($facts.files) files, " else "" end)\($facts.archive / 1000000 | round) MB as a gzip oci-archive",
  "",
  "## Contestants",
  "",
  "| Measurement | Who | Median | Fastest | Slowest | Runs | Command |",
  "|---|---|---:|---:|---:|---:|---|",
  (.contests[] | .unit as $unit
   | "| \(.contest) | \(.who) | \(.median | shown($unit)) | \(.min // .median | shown($unit)) | \(.max // .median | shown($unit)) | \(.runs) | `\(.command | gsub("/[^ ]*/selkie-bench[.][A-Za-z0-9]*"; "$WORK") | cell)` |")
