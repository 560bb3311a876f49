//! Tidiness, as tests: headers, directions of import, links, licences, length, what the default features pull in.
//!
//! They read the whole workspace from the clone, and write nothing.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Files of more lines than [`LONGEST`], each with its reason.
const LONG: &[(&str, &str)] = &[];
const LONGEST: usize = 600;

/// The crates that are published beside the core.
const SIBLINGS: [&str; 4] = [
    "novacron-kvm",
    "novacron-storage",
    "novacron-sched",
    "novacron-cloud",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Files below `dir` whose names end in `.ext`, as paths from the root.
fn files(dir: &Path, ext: &str, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, ext, found);
        } else if path.extension().is_some_and(|e| e == ext) {
            found.push(
                path.strip_prefix(root())
                    .unwrap()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
}

fn all(ext: &str) -> Vec<String> {
    let mut found = Vec::new();
    files(root(), ext, &mut found);
    found.sort();
    assert!(!found.is_empty(), "no .{ext} file below {:?}", root());
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(root())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn metadata() -> Value {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let args = [
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform",
        &target,
    ];
    serde_json::from_str(&cargo(&args)).unwrap()
}

fn none(problems: &[String], what: &str) {
    assert!(problems.is_empty(), "{what}:\n{}", problems.join("\n"));
}

#[test]
fn every_module_has_a_header() {
    let bare: Vec<String> = all("rs")
        .into_iter()
        .filter(|f| f.contains("/src/") && !read(f).starts_with("//!"))
        .collect();
    none(&bare, "without a `//!` header on the first line");
}

#[test]
fn long_files_have_a_reason() {
    let mut problems = Vec::new();
    for file in all("rs") {
        let lines = read(&file).lines().count();
        let listed = LONG.iter().any(|(f, _)| *f == file);
        if lines > LONGEST && !listed {
            problems.push(format!("{file}: {lines} lines; split it, or list why not"));
        }
        if lines <= LONGEST && listed {
            problems.push(format!("{file}: {lines} lines; needs no reason any more"));
        }
    }
    none(&problems, "longer than 600 lines");
}

#[test]
fn nothing_is_left_to_do() {
    let mark = concat!("to", "do!(");
    let left: Vec<String> = all("rs")
        .into_iter()
        .filter(|f| read(f).contains(mark))
        .collect();
    none(&left, "with a macro for what is missing");
}

#[test]
fn siblings_depend_on_the_core_only() {
    let metadata = metadata();
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if name != "novacron-core" && !SIBLINGS.contains(&name) {
            continue;
        }
        seen.insert(name);
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            if on.starts_with("novacron-") && on != "novacron-core" {
                problems.push(format!("{name} depends on {on}"));
            }
        }
    }
    assert_eq!(seen.len(), SIBLINGS.len() + 1, "{seen:?}");
    none(
        &problems,
        "what siblings need of each other is a trait in core",
    );
}

/// What each module of the core may use of the others; what is not named here may use everything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &["model"]),
    ("time", &[]),
    ("lifecycle", &["error"]),
    ("model", &["error", "lifecycle", "time"]),
    ("store", &["error", "model", "time"]),
    ("driver", &["error", "model", "time"]),
    ("records", &["error", "model", "store", "time"]),
    ("sim", &["driver", "error", "model", "time"]),
    (
        "control",
        &[
            "driver",
            "error",
            "lifecycle",
            "model",
            "records",
            "store",
            "time",
        ],
    ),
    ("question", &["driver", "error"]),
    (
        "peers",
        &[
            "control", "driver", "error", "model", "question", "records", "time",
        ],
    ),
    (
        "conformance",
        &["driver", "error", "model", "sim", "store", "time"],
    ),
];

/// The module of the core that `crate::<name>` is in.
fn module_of(name: &str) -> &str {
    match name {
        "Error" | "ErrorKind" | "Problem" | "Result" => "error",
        "Clock" | "Deadline" | "IdSource" | "SeededIds" | "SystemClock" | "TimerClock"
        | "Timestamp" => "time",
        "Bytes" | "MiB" | "VmSpec" => "model",
        "Phase" => "lifecycle",
        "Cluster" | "RequestOptions" => "cluster",
        module => module,
    }
}

#[test]
fn modules_of_the_core_use_each_other_in_one_direction() {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for file in all("rs") {
        let Some(path) = file.strip_prefix("novacron-core/src/") else {
            continue;
        };
        let own = path.split(['/', '.']).next().unwrap();
        let Some((own, may)) = MAY_USE.iter().find(|(module, _)| *module == own) else {
            continue;
        };
        let text = read(&file);
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
        for line in code {
            for used in line.split("crate::").skip(1) {
                let end = used.find(|c: char| !c.is_alphanumeric() && c != '_');
                let used = module_of(&used[..end.unwrap_or(used.len())]);
                seen.insert(used.to_owned());
                // The suites are macros that name themselves.
                let is_suite = used.ends_with("_conformance");
                if !used.is_empty() && !is_suite && used != *own && !may.contains(&used) {
                    problems.push(format!("{file}: {own} uses {used}: {}", line.trim()));
                }
            }
        }
    }
    assert!(seen.contains("model") && seen.contains("store"), "{seen:?}");
    none(&problems, "imports in the wrong direction");
}

#[test]
fn default_features_are_light() {
    let tree = cargo(&[
        "tree",
        "--locked",
        "-p",
        "novacron-core",
        "--edges=normal,build",
        "--prefix=none",
        "--no-dedupe",
        "--format={p}|{f}",
    ]);
    let lines: BTreeSet<&str> = tree.lines().collect();
    assert!(lines.len() < 150, "{} crates", lines.len());
    for line in lines {
        let (package, features) = line.split_once('|').unwrap();
        let name = package.split(' ').next().unwrap();
        let heavy = ["openssl", "openssl-sys", "reqwest", "virt", "aws-sdk-ec2"];
        assert!(!heavy.contains(&name), "{name} is in the default features");
        if name == "tokio" {
            assert!(!features.split(',').any(|f| f == "full"), "{features}");
        }
    }
}

/// Whether an SPDX expression can be satisfied with the allowed licences.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let result = either(&tokens, &mut at, allow);
    result && at == tokens.len()
}

fn either(tokens: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let mut result = both(tokens, at, allow);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        result |= both(tokens, at, allow);
    }
    result
}

fn both(tokens: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let mut result = one(tokens, at, allow);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(tokens, at, allow);
    }
    result
}

fn one(tokens: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let Some(token) = tokens.get(*at) else {
        return false;
    };
    *at += 1;
    if *token == "(" {
        let result = either(tokens, at, allow);
        *at += 1;
        return result;
    }
    let mut name = (*token).to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", tokens.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allow.contains(&name)
}

#[test]
fn licences_are_allowed() {
    let deny = read(".deny.toml");
    let list = deny.split_once("[licenses]").unwrap().1;
    let list = list.split_once("allow = [").unwrap().1;
    let list = list.split_once(']').unwrap().0;
    let allow: BTreeSet<String> = list
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    assert!(allow.contains("MIT"), "{allow:?}");
    assert!(allowed("(MIT OR Nothing) AND Apache-2.0", &allow));
    assert!(!allowed("MIT AND Nothing", &allow));

    let metadata = metadata();
    let used: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["id"].as_str().unwrap())
        .collect();
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        if !used.contains(package["id"].as_str().unwrap()) {
            continue;
        }
        let licence = package["license"].as_str().unwrap_or("none stated");
        // Behind a feature that is off by default.
        let is_excepted = (package["name"].as_str(), licence) == (Some("virt-sys"), "LGPL-2.1");
        if !allowed(licence, &allow) && !is_excepted {
            problems.push(format!("{}: {licence}", package["name"]));
        }
    }
    none(&problems, "licences that .deny.toml does not allow");
}

/// The text without its fenced blocks.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut out = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut problems = Vec::new();
    for file in all("md") {
        let text = prose(&read(&file));
        let here = Path::new(&file).parent().unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target: PathBuf = if path.is_empty() {
                PathBuf::from(&file)
            } else {
                here.join(path)
            };
            if !root().join(&target).exists() {
                problems.push(format!("{file}: {link}"));
            } else if !fragment.is_empty() && target.extension().is_some_and(|e| e == "md") {
                let text = prose(&read(&target.to_string_lossy()));
                let mut headings = text.lines().filter(|l| l.starts_with('#'));
                if !headings.any(|h| anchor(h) == fragment) {
                    problems.push(format!("{file}: {link}: no such heading"));
                }
            }
        }
    }
    none(&problems, "links that lead nowhere");
}

#[test]
fn files_that_the_docs_name_are_there() {
    let sources = all("rs");
    let mut problems = Vec::new();
    for file in all("md").iter().filter(|f| f.starts_with("docs/")) {
        if file.starts_with("docs/guides/") {
            continue;
        }
        for name in prose(&read(file)).split('`').skip(1).step_by(2) {
            let is_path = name.ends_with(".rs") && !name.contains(['*', '<', ' ', '{']);
            let there = |s: &String| s == name || s.ends_with(&format!("/{name}"));
            if is_path && !sources.iter().any(there) {
                problems.push(format!("{file}: {name}"));
            }
        }
    }
    none(&problems, "source files that are not there");
}

#[test]
fn changelog_has_a_place_for_what_comes() {
    assert!(read("CHANGELOG.md").contains("\n## Unreleased\n"));
}

#[test]
fn bugs_to_put_back_can_be_put_back() {
    for patch in all("patch") {
        let output = Command::new("git")
            .args(["apply", "--check", "--unidiff-zero", &patch])
            .current_dir(root())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{patch} does not apply: {error}");
    }
}

#[cfg(all(feature = "sqlite", feature = "sim"))]
mod readme {
    // The README's program begins.
    use std::path::Path;
    use std::time::Duration;

    use novacron_core::model::{DiskSource, NodeId, PoolId};
    use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
    use novacron_core::store::SqliteStore;
    use novacron_core::{Bytes, Cluster, Deadline, MiB, Phase, Result, VmSpec};

    async fn run(dir: &Path) -> Result<()> {
        let soon = || Deadline::after(Duration::from_secs(60));
        let world = SimWorld::new(1);
        world.add_pool(PoolId::new("shared")?, Bytes::gib(100));
        let cluster = Cluster::builder("prod")
            .store(SqliteStore::open(dir.join("novacron.db")).await?)
            .node(
                "alpha",
                SimHypervisor::new(&world, world.add_host(8, MiB(16_384))),
            )
            .node(
                "beta",
                SimHypervisor::new(&world, world.add_host(8, MiB(16_384))),
            )
            .storage("shared", SimStorage::new(&world, PoolId::new("shared")?))
            .build()
            .await?;
        cluster.nodes().wait_available(soon()).await?;

        let root = DiskSource::Blank {
            size: Bytes::gib(10),
            pool: None,
        };
        let spec = VmSpec::new("web-1")
            .vcpus(2)
            .memory(MiB(1024))
            .disk("root", root);
        let vm = cluster.vms().create(spec).await?;
        vm.wait_for(Phase::Running, soon()).await?;

        vm.stop().await?.wait(soon()).await?;
        vm.move_to(NodeId::new("beta")?).await?.wait(soon()).await?;
        vm.start().await?.wait(soon()).await?;
        vm.delete().await?.wait(soon()).await?;
        cluster.shutdown(soon()).await
    }
    // The README's program ends.

    fn lines(text: &str) -> Vec<&str> {
        text.lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect()
    }

    /// The program by tokens, however it is broken into lines.
    fn squeezed(text: &str) -> String {
        lines(text).concat().replace([' ', ','], "")
    }

    #[tokio::test]
    async fn readme_program_runs() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path()).await.unwrap();
    }

    #[test]
    fn readme_shows_the_program_that_runs() {
        let readme = super::read("README.md");
        let shown = readme.split_once("```rust\n").unwrap().1;
        let shown = shown.split_once("```").unwrap().0;
        let here = include_str!("tidy.rs");
        let here = here.split_once("program begins.\n").unwrap().1;
        let here = here.split_once("// The README's program ends").unwrap().0;
        assert_eq!(squeezed(shown), squeezed(here));
    }
}
