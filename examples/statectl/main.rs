//! The state of a control plane, out of one store and into another: `novacron_core::store::{dump, load, diff}` as a
//! program.
//!
//! ```text
//!   statectl dump <store> <file>      write every record, at one revision
//!   statectl load <file> <store>      into an empty store; checked before and after
//!   statectl copy <store> <store>     dump and load, by a temporary file, and compare
//!   statectl diff <store> <store>     tell what differs; exits with 1 if anything does
//! ```
//! What a store's URL looks like stands in [`url`]. Shut the cluster down before its state moves for good; a dump for a
//! backup may be taken while it runs, but SQLite has one process at a time.

mod url;

use std::path::Path;
use std::process::ExitCode;

use novacron_core::store::{DumpSummary, Store, check_dump, diff, dump, load};
use novacron_core::{Result, SeededIds};
use tokio::fs::File;
use tokio::io::{AsyncWriteExt as _, BufReader, BufWriter};

const USAGE: &str = "usage: statectl dump <store> <file> | load <file> <store> | copy <store> <store> | diff <store> <store>
stores: sqlite:<path>
        postgres://<user>@<host>[,<host>…]/<database>[?schema=<schema>] (built with --features postgres)
        etcd://<host:port>[,<host:port>…][/<prefix>] (built with --features etcd)";

enum Failed {
    /// The command line is wrong.
    Usage,
    Error(novacron_core::Error),
    Io(String, std::io::Error),
    Differs,
}

impl From<novacron_core::Error> for Failed {
    fn from(error: novacron_core::Error) -> Self {
        Self::Error(error)
    }
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "the output of a program for people")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let code = match run(&arguments).await {
        Ok(()) => 0,
        Err(Failed::Differs) => 1,
        Err(Failed::Usage) => {
            eprintln!("{USAGE}");
            2
        }
        Err(Failed::Error(error)) => {
            eprintln!("statectl: {}", error.report());
            3
        }
        Err(Failed::Io(path, error)) => {
            eprintln!("statectl: {path}: {error}");
            3
        }
    };
    ExitCode::from(code)
}

async fn run(arguments: &[&str]) -> Result<(), Failed> {
    match arguments {
        ["dump", store, file] => {
            let store = url::existing(store).await?;
            let dumped = write(&*store.store, Path::new(file)).await;
            store.close().await?;
            tell("dumped", dumped?);
        }
        ["load", file, store] => {
            // Before the store is opened, which may make it.
            let mut file = read(Path::new(file)).await?;
            check_dump(&mut file).await?;
            let store = url::open(store).await?;
            let loaded = load(&*store.store, &mut file, &SeededIds::from_os()).await;
            store.close().await?;
            tell("loaded", loaded?);
        }
        ["copy", from, to] => {
            let folder = tempfile::tempdir()
                .map_err(|error| Failed::Io("a temporary folder".to_owned(), error))?;
            let file = folder.path().join("state");
            let from = url::existing(from).await?;
            let copied = copy(&*from.store, to, &file).await;
            from.close().await?;
            tell("copied", copied?);
        }
        ["diff", first, second] => {
            let (first, second) = (url::existing(first).await?, url::existing(second).await?);
            let differences = diff(&*first.store, &*second.store).await;
            first.close().await?;
            second.close().await?;
            return show(&differences?);
        }
        _ => return Err(Failed::Usage),
    }
    Ok(())
}

/// The other store is opened, and with that perhaps made, when the dump is whole.
async fn copy(from: &dyn Store, to: &str, file: &Path) -> Result<DumpSummary, Failed> {
    write(from, file).await?;
    let mut dumped = read(file).await?;
    let to = url::open(to).await?;
    let copied = async {
        let loaded = load(&*to.store, &mut dumped, &SeededIds::from_os()).await?;
        Ok::<_, novacron_core::Error>((loaded, diff(from, &*to.store).await?))
    };
    let copied = copied.await;
    to.close().await?;
    let (loaded, differences) = copied?;
    show(&differences)?;
    Ok(loaded)
}

/// Dumps into a file that has its name only once it is whole.
async fn write(store: &dyn Store, path: &Path) -> Result<DumpSummary, Failed> {
    let failed = |error| Failed::Io(path.display().to_string(), error);
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let mut file = BufWriter::new(File::create(&unfinished).await.map_err(failed)?);
    let dumped = dump(store, &mut file).await?;
    file.flush().await.map_err(failed)?;
    file.get_ref().sync_all().await.map_err(failed)?;
    tokio::fs::rename(&unfinished, path).await.map_err(failed)?;
    Ok(dumped)
}

async fn read(path: &Path) -> Result<BufReader<File>, Failed> {
    let file = File::open(path).await;
    file.map(BufReader::new)
        .map_err(|error| Failed::Io(path.display().to_string(), error))
}

#[expect(clippy::print_stdout, reason = "the output of a program for people")]
fn tell(what: &str, summary: DumpSummary) {
    let DumpSummary {
        revision,
        records,
        crc32,
    } = summary;
    println!("{what} {records} records of revision {revision}, crc32 {crc32:08x}");
}

#[expect(clippy::print_stdout, reason = "the output of a program for people")]
fn show(differences: &[novacron_core::store::Difference]) -> Result<(), Failed> {
    if differences.is_empty() {
        println!("equal");
        return Ok(());
    }
    differences
        .iter()
        .for_each(|difference| println!("{difference}"));
    Err(Failed::Differs)
}
