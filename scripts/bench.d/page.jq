# From scripts/bench's raw results to docs/benchmarks.md.
def shown($unit):
  if $unit == "kB" then "\(round) kB"
  elif . >= 10000 then "\(. / 100 | round / 10) s"
  elif . >= 100 then "\(round) ms"
  elif . >= 10 then "\(. * 10 | round / 10) ms"
  else "\(. * 100 | round / 100) ms" end;
def ratio: if . >= 10 then round elif . >= 0.1 then . * 100 | round / 100 else . * 1000 | round / 1000 end;
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
  (.rows[] | .unit as $unit
   | "| \(.what) | \(.ours | shown($unit)) | \(.peer_who) | \(.peer | shown($unit)) | \(.ratio | ratio) | \(.target) | \(.verdict) |"),
  "",
  "Times are medians over all rounds; contestants take turns round by round. Network is `none` throughout.",
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
  "",
  "## Machine and versions",
  "",
  "- \($facts.machine); \($facts.system); \($facts.disk)",
  "- cgroups: \($facts.cgroups); scheduling: \($facts.scheduling); load average \($facts.load)",
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
