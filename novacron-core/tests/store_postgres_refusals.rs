//! What PostgresStore does not take, and what it says: servers, users, schemas, values that are not as they have to be.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "faults come at some time")]

mod support {
    pub(crate) mod postgres;
    pub(crate) mod process;
}

use std::fs;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use novacron_core::store::{
    Commit, Key, Op, PostgresOptions, PostgresStore, PostgresTls, Revision, Store, TxnId,
};
use novacron_core::{Error, ErrorKind};
use secrecy::SecretString;
use support::postgres::{PASSWORD, Server};
use uuid::Uuid;

fn commit(n: u128, key: &str, value: impl Into<Bytes>) -> Commit {
    let mut commit = Commit::new(TxnId(Uuid::from_u128(n)));
    commit.push(Op::Put(Key::new(key).unwrap(), value.into()));
    commit
}

async fn refused(options: PostgresOptions) -> Error {
    PostgresStore::connect(options).await.unwrap_err()
}

#[track_caller]
fn assert_says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = error.report();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
    assert!(
        !format!("{text} {error:?}").contains("wrong-horse"),
        "{text}"
    );
}

#[tokio::test]
async fn wrong_credentials_are_named_and_never_shown() {
    let server = Server::start(true, &[]);
    let options = PostgresOptions::new(&server.tcp_string("localhost", "postgres")).unwrap();
    let wrong = options
        .clone()
        .with_password(&SecretString::from("wrong-horse"));
    assert_says(
        &refused(wrong).await,
        ErrorKind::PermissionDenied,
        &["password", "postgres"],
    );
    let none = refused(options.clone()).await;
    assert_says(&none, ErrorKind::PermissionDenied, &["password"]);
    let nobody = PostgresOptions::new(&server.tcp_string("localhost", "nobody")).unwrap();
    let nobody = nobody.with_password(&SecretString::from("wrong-horse"));
    assert_says(
        &refused(nobody).await,
        ErrorKind::PermissionDenied,
        &["nobody"],
    );

    let right = options.with_password(&SecretString::from(PASSWORD));
    let store = PostgresStore::connect(right).await.unwrap();
    assert!(!format!("{store:?}").contains(PASSWORD));
}

#[tokio::test]
async fn a_database_or_server_that_is_not_there_is_named() {
    let mut server = Server::start(true, &[]);
    let missing = PostgresOptions::new(&server.string("postgres", "panel")).unwrap();
    assert_says(&refused(missing).await, ErrorKind::NotFound, &["panel"]);
    let options = PostgresOptions::new(&server.tcp_string("localhost", "postgres")).unwrap();
    server.kill();
    let error = refused(options).await;
    assert_says(&error, ErrorKind::Unavailable, &["localhost"]);
    assert!(error.is_retryable());
}

/// A server that accepts connections and never says anything.
#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let string = format!("host=127.0.0.1 port={port} user=u dbname=d");
    let mut options = PostgresOptions::new(&string).unwrap();
    options.deadline = Duration::from_millis(300);
    assert_says(
        &refused(options).await,
        ErrorKind::Unavailable,
        &["in time"],
    );
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused() {
    let server = Server::start(false, &[]);
    server
        .sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        .await;
    let options = PostgresOptions::new(&server.string("postgres", "latin")).unwrap();
    assert_says(
        &refused(options).await,
        ErrorKind::Unsupported,
        &["LATIN1", "UTF8"],
    );
}

/// Makes `name`.pem and `name`.key in the server's folder, signed by `by` or by itself.
fn certificate(server: &Server, name: &str, by: Option<&str>, extension: &str) {
    let path = |name: &str, end: &str| server.folder().join(format!("{name}.{end}"));
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args([
            "-days",
            "2",
            "-subj",
            &format!("/CN={name}"),
            "-addext",
            extension,
        ])
        .arg("-keyout")
        .arg(path(name, "key"))
        .arg("-out")
        .arg(path(name, "pem"));
    if let Some(by) = by {
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl
            .arg("-CA")
            .arg(path(by, "pem"))
            .arg("-CAkey")
            .arg(path(by, "key"));
    }
    let output = openssl
        .output()
        .expect("openssl runs (Debian's postgresql brings it)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for end in ["pem", "key"] {
        let owned = Command::new("chown")
            .arg(format!("--reference={}", server.folder().display()))
            .arg(path(name, end))
            .status();
        assert!(owned.unwrap().success());
    }
}

#[tokio::test]
async fn tls_is_verified_by_authority_and_name() {
    let server = Server::start(true, &[]);
    certificate(&server, "authority", None, "keyUsage=keyCertSign");
    certificate(&server, "another", None, "keyUsage=keyCertSign");
    certificate(
        &server,
        "server",
        Some("authority"),
        "subjectAltName=DNS:db.example",
    );
    certificate(
        &server,
        "panel",
        Some("authority"),
        "subjectAltName=DNS:panel",
    );
    let pem = |name: &str| fs::read(server.folder().join(format!("{name}.pem"))).unwrap();
    let options = |host: &str, authority: &str, user: &str| {
        let options = PostgresOptions::new(&server.tcp_string(host, user)).unwrap();
        let mut options = options.with_password(&SecretString::from(PASSWORD));
        options.tls = Some(PostgresTls::new(&pem(authority)).unwrap());
        options
    };

    let none = refused(options("db.example", "authority", "postgres")).await;
    assert_says(&none, ErrorKind::PermissionDenied, &["TLS"]);

    let client = server.client().await;
    let folder = server.folder().display();
    for sql in [
        format!("ALTER SYSTEM SET ssl_cert_file = '{folder}/server.pem'"),
        format!("ALTER SYSTEM SET ssl_key_file = '{folder}/server.key'"),
        format!("ALTER SYSTEM SET ssl_ca_file = '{folder}/authority.pem'"),
        "ALTER SYSTEM SET ssl = on".to_owned(),
        "CREATE ROLE panel LOGIN SUPERUSER".to_owned(),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        client.batch_execute(&sql).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;

    let store = PostgresStore::connect(options("db.example", "authority", "postgres"))
        .await
        .unwrap();
    store.commit(commit(1, "vm/a", "1")).await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
               WHERE a.application_name = 'novacron' AND NOT s.ssl";
    let plain: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(plain, 0, "every connection is encrypted");

    let name = refused(options("localhost", "authority", "postgres")).await;
    assert_says(
        &name,
        ErrorKind::PermissionDenied,
        &["certificate", "localhost"],
    );
    let authority = refused(options("db.example", "another", "postgres")).await;
    assert_says(
        &authority,
        ErrorKind::PermissionDenied,
        &["certificate", "UnknownIssuer"],
    );

    // A server that asks for the client's certificate.
    let hba = server.folder().join("pg_hba.conf");
    fs::write(&hba, "local all all trust\nhostssl all panel 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 scram-sha-256\n").unwrap();
    client
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let without = refused(options("db.example", "authority", "panel")).await;
    assert_says(&without, ErrorKind::PermissionDenied, &[]);
    let key = SecretString::from(fs::read_to_string(server.folder().join("panel.key")).unwrap());
    let mut with = options("db.example", "authority", "panel");
    with.tls = Some(
        with.tls
            .unwrap()
            .with_client_certificate(&pem("panel"), &key)
            .unwrap(),
    );
    PostgresStore::connect(with).await.unwrap();

    let mut unencrypted = options("db.example", "authority", "postgres");
    unencrypted.tls = None;
    assert_says(
        &refused(unencrypted).await,
        ErrorKind::PermissionDenied,
        &["pg_hba.conf"],
    );
}

#[tokio::test]
async fn users_with_too_few_privileges_are_refused_and_those_with_just_enough_are_not() {
    let server = Server::start(false, &[]);
    let as_user = |user: &str| PostgresOptions::new(&server.string(user, "postgres")).unwrap();
    server
        .sql("CREATE ROLE panel LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE readonly LOGIN")
        .await;
    let cannot_make = refused(as_user("panel")).await;
    assert_says(
        &cannot_make,
        ErrorKind::PermissionDenied,
        &["permission denied for database"],
    );

    server
        .sql(&PostgresStore::migration_script("novacron").unwrap())
        .await;
    assert_says(
        &refused(as_user("panel")).await,
        ErrorKind::PermissionDenied,
        &["permission denied for schema"],
    );
    // The grants of docs/guides/postgresql.md.
    server
        .sql(
            "GRANT USAGE ON SCHEMA novacron TO panel, reader, readonly;
             GRANT SELECT ON ALL TABLES IN SCHEMA novacron TO panel, reader, readonly;
             GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA novacron TO panel, readonly;
             ALTER ROLE readonly SET default_transaction_read_only = on",
        )
        .await;
    assert_says(
        &refused(as_user("reader")).await,
        ErrorKind::PermissionDenied,
        &["reader", "novacron", "INSERT"],
    );
    assert_says(
        &refused(as_user("readonly")).await,
        ErrorKind::PermissionDenied,
        &["write"],
    );
    let store = PostgresStore::connect(as_user("panel")).await.unwrap();
    store.commit(commit(1, "vm/a", "1")).await.unwrap();
    store
        .put_beat(&Key::new("node/a").unwrap(), Some("1".into()))
        .await
        .unwrap();
    store
        .lease_acquire("leader", "a", Duration::from_secs(1))
        .await
        .unwrap();
    store.compact(Revision(1)).await.unwrap();

    // A privilege that is taken away later.
    server
        .sql("REVOKE INSERT, UPDATE ON novacron.revision FROM panel")
        .await;
    let error = store.commit(commit(2, "vm/a", "2")).await.unwrap_err();
    assert_says(&error, ErrorKind::PermissionDenied, &["revision"]);
}

#[tokio::test]
async fn a_table_that_is_missing_or_goes_missing_is_named() {
    let server = Server::start(false, &[]);
    let store = server.store("novacron").await;
    store.commit(commit(1, "vm/a", "1")).await.unwrap();
    server
        .sql("DROP TABLE novacron.leases; DROP TABLE novacron.vms")
        .await;
    let lease = store
        .lease_acquire("leader", "a", Duration::from_secs(1))
        .await
        .unwrap_err();
    assert_says(&lease, ErrorKind::Corrupt, &["leases", "backup"]);
    let get = store.get(&Key::new("vm/a").unwrap()).await.unwrap_err();
    assert_says(&get, ErrorKind::Corrupt, &["vms"]);
    server.sql("DROP TABLE novacron.txns").await;
    let write = store.commit(commit(2, "run/n/a", "1")).await.unwrap_err();
    assert_says(&write, ErrorKind::Corrupt, &["txns"]);
    let again = refused(server.options("novacron")).await;
    assert_says(
        &again,
        ErrorKind::Corrupt,
        &["leases", "txns", "vms", "novacron"],
    );
}

#[tokio::test]
async fn schemas_of_other_versions_are_brought_up_to_date_or_refused_by_name() {
    let server = Server::start(false, &[]);
    let mut by_hand = server.options("by_hand");
    by_hand.migrate = false;
    let missing = refused(by_hand.clone()).await;
    assert_says(
        &missing,
        ErrorKind::FailedPrecondition,
        &["by_hand", "version 0", "migration_script"],
    );
    server
        .sql(&PostgresStore::migration_script("by_hand").unwrap())
        .await;
    PostgresStore::connect(by_hand).await.unwrap();

    // Many processes that start at the same time: one migrates.
    let starts = (0..6).map(|_| PostgresStore::connect(server.options("novacron")));
    for started in futures::future::join_all(starts).await {
        started.unwrap();
    }
    let sql = "SELECT count(*), max(version) FROM novacron.migrations";
    let row = server.client().await.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1)), (1, 1));

    server
        .sql("INSERT INTO novacron.migrations VALUES (7, now(), 'a newer build')")
        .await;
    let newer = refused(server.options("novacron")).await;
    assert_says(
        &newer,
        ErrorKind::Corrupt,
        &["version 7", "up to 1", "newer build"],
    );

    // A schema of another program that has such a name.
    server
        .sql("CREATE SCHEMA taken; CREATE TABLE taken.leases (x int)")
        .await;
    let taken = refused(server.options("taken")).await;
    assert_says(
        &taken,
        ErrorKind::FailedPrecondition,
        &["leases", "already exists"],
    );
}

/// The disk fills up: nothing is half there, other calls go on, and commits too once there is space.
#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    // The sizes of pages and the limit do not fit: the last page is not written whole, as on a disk.
    let server = Server::start_small((6 << 20) + 4096);
    let store = server.store("nc").await;
    // Digits, which do not compress to much less.
    let large = |n: u128| {
        let mut state = n;
        let mut text = String::from("\"");
        while text.len() < 200_000 {
            state = state
                .wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645)
                .wrapping_add(1);
            text.push_str(&format!("{:016x}", state >> 64));
        }
        text + "\""
    };
    let mut last = Revision(0);
    let error = loop {
        let n = u128::from(last.0) + 1;
        match store.commit(commit(n, &format!("vm/{n}"), large(n))).await {
            Ok(revision) => last = revision,
            Err(error) => break error,
        }
        assert!(last < Revision(200), "the disk is never full");
    };
    assert_says(&error, ErrorKind::Exhausted, &["space"]);
    assert_eq!(store.revision().await.unwrap(), last);
    let small = store.commit(commit(1000, "run/n/a", "1")).await.unwrap();
    assert_eq!(
        small,
        Revision(last.0 + 1),
        "there is space in the files of another table"
    );
    let missing = Key::new(format!("vm/{}", last.0 + 1)).unwrap();
    assert!(store.get(&missing).await.unwrap().is_none());
    // One that is too large does not take the others of its group with it.
    let with_others = (1..8).map(|n| {
        let value = if n == 4 { large(2000) } else { "1".to_owned() };
        store.commit(commit(
            2000 + n,
            &format!("{}/{n}", if n == 4 { "vm" } else { "run" }),
            value,
        ))
    });
    let answers = futures::future::join_all(with_others).await;
    for (n, answer) in (1..).zip(answers) {
        assert_eq!(answer.is_err(), n == 4, "{n}: {answer:?}");
    }
}

/// Values are JSON, whatever is in them; what is no JSON is refused before it is sent.
#[tokio::test]
async fn values_are_json_and_come_back_equal() {
    let server = Server::start(false, &[]);
    let store = server.store("nc").await;
    let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
    let values = [
        r#"{"b":1,"a":[1.0,2000.0,-0.5,18446744073709551615,9007199254740993],"a b":null}"#,
        r#""with a NUL: \u0000, a quote \" and a backslash \\u0000""#,
        r#"{"\u0000":{"x":"\u0000"}}"#,
        r#"{"v":1,"body":{"meta":{"name":"\ud83d\ude00 ä 漢"}}}"#,
        &format!(
            r#"{{"body":{{"meta":{{"name":"{}"}}}}}}"#,
            "n".repeat(10_000)
        ),
        "1e-300",
        &deep,
    ];
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    for (n, value) in (1..).zip(values) {
        let key = format!("vm/{n}");
        let revision = store
            .commit(commit(n, &key, value.to_owned()))
            .await
            .unwrap();
        let read = store.get(&Key::new(key).unwrap()).await.unwrap().unwrap();
        assert_eq!(
            (read.version, json(&read.value)),
            (revision, json(value.as_bytes())),
            "{value}"
        );
    }
    // Numbers are equal by value, however they were written.
    store
        .commit(commit(50, "vm/n", "[2e3,-0.0]"))
        .await
        .unwrap();
    let read = store
        .get(&Key::new("vm/n").unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        serde_json::from_slice::<[f64; 2]>(&read.value).unwrap(),
        [2000.0, 0.0]
    );

    let before = store.revision().await.unwrap();
    let bottomless = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let refused: [&[u8]; 8] = [
        b"",
        b"{",
        b"'x'",
        b"\"\xff\"",
        b"\"\\ud800\"",
        b"1e999999",
        b"\"\0\"",
        bottomless.as_bytes(),
    ];
    for value in refused {
        let error = store
            .commit(commit(99, "vm/a", value.to_vec()))
            .await
            .unwrap_err();
        assert_says(&error, ErrorKind::Invalid, &["vm/a"]);
    }
    // What only the server cannot hold fails alone.
    let tiny = format!("0.{}1", "0".repeat(20_000));
    let good = (200..204).map(|n| store.commit(commit(n, &format!("run/{n}"), "1")));
    let (bad, good) = futures::join!(
        store.commit(commit(100, "vm/a", tiny)),
        futures::future::join_all(good)
    );
    assert_says(&bad.unwrap_err(), ErrorKind::Invalid, &[]);
    assert!(good.iter().all(Result::is_ok), "{good:?}");
    assert_eq!(store.revision().await.unwrap(), Revision(before.0 + 4));
}

/// What a person wrote into the tables by hand: the database refuses some of it, and reads name the rest.
#[tokio::test]
async fn records_written_by_hand_are_refused_or_named() {
    let server = Server::start(false, &[]);
    let store = server.store("nc").await;
    store
        .commit(commit(1, "vm/a", r#""\u0000""#))
        .await
        .unwrap();
    let client = server.client().await;
    for refused in [
        "INSERT INTO nc.records (key, kind, version, value) VALUES ('vm//x', 'vm', 1, '1')",
        "INSERT INTO nc.records (key, kind, version, value) VALUES ('vm/x', 'run', 1, '1')",
        "UPDATE nc.vms SET value = '1'",
        "INSERT INTO nc.revision (one, revision, compacted) VALUES (false, 1, 1)",
    ] {
        let error = client.batch_execute(refused).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "23514", "{refused}");
    }
    client
        .batch_execute("DELETE FROM nc.revision")
        .await
        .unwrap();
    let error = store.revision().await.unwrap_err();
    assert_says(&error, ErrorKind::Corrupt, &["revision"]);
    let error = store.commit(commit(2, "vm/b", "1")).await.unwrap_err();
    assert_says(&error, ErrorKind::Corrupt, &["missing"]);
}
