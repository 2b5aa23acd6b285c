// thimble doctor: what this machine is, which kernels will run on it and why, which libraries were loaded, and what the
// machine can do at most. The first command to run on a new machine, and the first thing to attach to a bug report.
#include <fmt/format.h>

#include <algorithm>

#include "tensor/blas.h"
#include "tools/cli/cli.h"
#include "tools/cli/machine.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

// The tiers that have a kernel of their own for each slot.
std::vector<std::vector<Tier>> kernels_of_each_slot(const std::vector<Tier>& tiers) {
  std::vector<std::vector<Tier>> available(kSlotCount);
  for (const Tier tier : tiers) {
    const KernelTable table = build_kernel_table(tier);
    for (size_t s = 0; s < kSlotCount; ++s) {
      if (table.origin[s] == tier) available[s].push_back(tier);
    }
  }
  return available;
}

std::string names(const std::vector<Tier>& tiers) {
  std::string text;
  for (const Tier t : tiers) text += (text.empty() ? "" : " ") + std::string(tier_name(t));
  return text;
}

std::string size_text(int64_t bytes) {
  if (bytes <= 0) return "unknown";
  if (bytes < int64_t{1} << 20) return fmt::format("{} KiB", bytes >> 10);
  if (bytes < int64_t{1} << 30) return fmt::format("{:.4g} MiB", double(bytes) / double(1 << 20));
  return fmt::format("{:.1f} GiB", double(bytes) / double(1 << 30));
}

struct Report {
  Machine machine;
  BlasInfo blas;
  std::vector<std::string> openmp;
  std::vector<std::string> warnings;
  std::vector<Roofline> rooflines;  // one thread, then all; empty when not measured
};

Report examine(const Session& session, bool roofline) {
  Report r;
  r.machine = describe_machine();
  r.blas = blas_info();
  r.openmp = loaded_openmp_runtimes();
  if (r.blas.flavour == "openmp")
    r.warnings.push_back("OpenBLAS is the openmp flavour and may bring a second OpenMP runtime; install libopenblas0-pthread and choose "
                         "it: update-alternatives --config libopenblas.so.0-x86_64-linux-gnu");
  if (r.openmp.size() > 1) r.warnings.push_back("two OpenMP runtimes are loaded; their threads compete for the cores");
  if (tier_supported(Tier::avx512) && !blas_core_is_avx512(r.blas.core))
    r.warnings.push_back(fmt::format("OpenBLAS runs its {} kernels although this machine has AVX-512. Only its Cholesky and comparisons are slower; "
                                     "OPENBLAS_CORETYPE=SKYLAKEX chooses the faster ones",
                                     r.blas.core));
  if (r.machine.build_type == "Debug") r.warnings.push_back("this is a debug build; use --preset release for speed");
  if (!roofline) return r;
  r.rooflines.push_back(measure_roofline(session.kernels(), 1));
  if (session.threads() > 1) r.rooflines.push_back(measure_roofline(session.kernels(), session.threads()));
  return r;
}

Json roofline_json(const Roofline& r) {
  return {{"threads", r.threads},   {"f32_gflops", r.f32_gflops}, {"bf16_gflops", r.bf16_gflops},
          {"int8_gops", r.int8_gops}, {"read_gbs", r.read_gbs},     {"copy_gbs", r.copy_gbs}};
}

Json to_json(const Session& session, const Report& r) {
  const Machine& m = r.machine;
  Json json;
  json["schema"] = "thimble.doctor/1";
  json["fingerprint"] = machine_fingerprint(m);
  json["cpu"] = {{"model", m.cpu},           {"vendor", m.vendor},     {"cores", m.cores_online}, {"l1d_bytes", m.l1d_bytes},
                 {"l2_bytes", m.l2_bytes}, {"l3_bytes", m.l3_bytes}, {"governor", m.governor}};
  json["memory"] = {{"total_bytes", m.memory_bytes}, {"available_bytes", m.memory_available_bytes}, {"huge_pages", m.huge_pages}};
  json["build"] = {{"os", m.os}, {"compiler", m.compiler}, {"type", m.build_type}, {"commit", m.commit}};
  json["isa"] = tier_name(session.kernels().tier);
  json["threads"] = session.threads();
  json["tiers"] = Json::array();
  for (const Tier t : m.tiers) json["tiers"].push_back(tier_name(t));
  json["tiers_missing"] = Json::array();
  for (int t = 0; t < kTierCount; ++t) {
    const std::string reason = tier_missing_reason(static_cast<Tier>(t));
    if (!reason.empty()) json["tiers_missing"].push_back({{"name", tier_name(static_cast<Tier>(t))}, {"reason", reason}});
  }
  json["slots"] = Json::array();
  const auto available = kernels_of_each_slot(m.tiers);
  for (size_t s = 0; s < kSlotCount; ++s) {
    Json tiers = Json::array();
    for (const Tier t : available[s]) tiers.push_back(tier_name(t));
    json["slots"].push_back({{"name", slot_name(static_cast<SlotId>(s))},
                             {"kind", slot_kind(static_cast<SlotId>(s))},
                             {"origin", tier_name(session.kernels().origin[s])},
                             {"available", tiers}});
  }
  json["blas"] = {{"path", r.blas.path}, {"flavour", r.blas.flavour}, {"core", r.blas.core}, {"config", r.blas.config}};
  json["openmp"] = r.openmp;
  json["roofline"] = r.rooflines.empty() ? Json(nullptr) : roofline_json(r.rooflines.back());
  if (!r.rooflines.empty()) json["roofline"]["one_thread"] = roofline_json(r.rooflines.front());
  json["warnings"] = r.warnings;
  return json;
}

std::string to_text(const Session& session, const Report& r) {
  const Machine& m = r.machine;
  std::string out;
  const auto row = [&out](const std::string& label, const std::string& value) { out += fmt::format("  {:<12} {}\n", label, value); };

  out += "Machine\n";
  row("cpu", fmt::format("{} ({})", m.cpu, m.vendor));
  row("threads", fmt::format("{} in use; this process may use {} of {} cores", session.threads(), m.threads, m.cores_online));
  row("caches", fmt::format("{} L1d and {} L2 per core, {} L3 shared", size_text(m.l1d_bytes), size_text(m.l2_bytes), size_text(m.l3_bytes)));
  row("memory", fmt::format("{}, {} available; transparent huge pages: {}", size_text(m.memory_bytes), size_text(m.memory_available_bytes), m.huge_pages));
  row("governor", m.governor);
  row("system", m.os);
  row("fingerprint", fmt::format("{}, the same in every bench record of this machine", machine_fingerprint(m)));
  row("build", fmt::format("{}, {}, commit {}", m.compiler, m.build_type, m.commit));

  out += "\nLibraries\n";
  row("OpenBLAS", fmt::format("{}, {} flavour, {} kernels", r.blas.path, r.blas.flavour, r.blas.core));
  if (r.openmp.empty()) row("OpenMP", "linked statically or not at all");
  for (const std::string& path : r.openmp) row("OpenMP", path);

  out += "\nInstruction-set tiers\n";
  for (int t = 0; t < kTierCount; ++t) {
    const auto tier = static_cast<Tier>(t);
    const std::string reason = tier_missing_reason(tier);
    row(tier_name(tier), !reason.empty() ? "no: " + reason : session.kernels().tier == tier ? "yes, in use with its ancestors" : "yes");
  }

  out += "\nKernels: which tier each slot runs on, and the tiers that have a kernel of their own\n";
  const auto available = kernels_of_each_slot(m.tiers);
  std::vector<std::string> kinds;
  for (int s = 0; s < kSlotCount; ++s) {
    const std::string kind = slot_kind(static_cast<SlotId>(s));
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
  }
  for (const std::string& kind : kinds) {
    out += fmt::format("  {}\n", kind);
    for (size_t s = 0; s < kSlotCount; ++s) {
      const auto slot = static_cast<SlotId>(s);
      if (slot_kind(slot) != kind) continue;
      out += fmt::format("    {:<22} {:<12} {}\n", slot_name(slot), tier_name(session.kernels().origin[s]), names(available[s]));
    }
  }

  if (!r.rooflines.empty()) {
    out += fmt::format("\nPeaks measured now, tier {}\n", tier_name(session.kernels().tier));
    out += fmt::format("  {:<12} {:>12} {:>12} {:>12} {:>12} {:>12}\n", "", "f32", "bf16", "int8", "read", "copy");
    for (const Roofline& p : r.rooflines) {
      out += fmt::format("  {:<12} {:>12} {:>12} {:>12} {:>12} {:>12}\n", fmt::format("{} thread{}", p.threads, p.threads > 1 ? "s" : ""),
                         fmt::format("{:.0f} GFLOP/s", p.f32_gflops), fmt::format("{:.0f} GFLOP/s", p.bf16_gflops),
                         fmt::format("{:.0f} GOP/s", p.int8_gops), fmt::format("{:.1f} GB/s", p.read_gbs), fmt::format("{:.1f} GB/s", p.copy_gbs));
    }
  }

  out += r.warnings.empty() ? "\nNo problems found.\n" : "\nWarnings\n";
  for (const std::string& w : r.warnings) out += fmt::format("  - {}\n", w);
  return out;
}

}  // namespace

void add_doctor(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("doctor", "describe this machine, its kernels and libraries, and measure its peaks");
  command->footer("Example: thimble doctor --no-roofline\n         THIMBLE_ISA=avx2 thimble doctor --json");
  auto common = std::make_shared<CommonOptions>();
  auto roofline = std::make_shared<bool>(true);
  add_common_options(*command, *common);
  command->add_flag("--roofline,!--no-roofline", *roofline, "measure peaks of arithmetic and memory, about a second; default on");
  command->callback([common, roofline, run] {
    *run = [common, roofline] {
      const Session session(*common);
      const Report report = examine(session, *roofline);
      if (common->json) {
        print_json(to_json(session, report));
      } else {
        write_stdout(to_text(session, report));
      }
      return 0;
    };
  });
}

}  // namespace thimble::cli
