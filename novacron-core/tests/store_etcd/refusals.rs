//! Who and what is refused: users, roles, certificates, endpoints, records written by hand.

use std::fs;
use std::time::{Duration, Instant};

use novacron_core::store::{
    EtcdOptions, EtcdStore, EtcdTls, EtcdUser, LeaseAnswer, ListOptions, Store,
};
use novacron_core::{Error, ErrorKind};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::shared::{key, pass, put, told, value};
use super::support::etcd::{Etcd, Setup};

const PASSWORD: &str = "correct horse";

/// An etcd with a user who may do everything under the prefix, one who may read it, and one who may do nothing.
fn with_users(args: &[&str]) -> Etcd {
    let args = args.iter().map(ToString::to_string).collect();
    let etcd = Etcd::start_with(1, &Setup { args, tls: false });
    etcd.leader();
    for user in ["root", "panel", "reader", "nobody"] {
        etcd.ctl(&["user", "add", &format!("{user}:{PASSWORD}")]);
    }
    for (role, may) in [("all", "readwrite"), ("look", "read")] {
        etcd.ctl(&["role", "add", role]);
        etcd.ctl(&[
            "role",
            "grant-permission",
            role,
            may,
            "--prefix=true",
            "/novacron/",
        ]);
    }
    for (user, role) in [("root", "root"), ("panel", "all"), ("reader", "look")] {
        etcd.ctl(&["user", "grant-role", user, role]);
    }
    etcd.ctl(&["auth", "enable"]);
    etcd
}

fn as_user(etcd: &Etcd, name: &str, password: &str) -> EtcdOptions {
    let mut options = etcd.options();
    options.user = Some(EtcdUser {
        name: name.to_owned(),
        password: password.into(),
    });
    options
}

async fn refused(options: EtcdOptions) -> Error {
    let began = Instant::now();
    let error = EtcdStore::connect(options).await.unwrap_err();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "not at once: {error}"
    );
    let shown = format!("{error} {error:?} {}", error.report());
    assert!(
        !shown.contains(PASSWORD) && !shown.contains("wrong one"),
        "{shown}"
    );
    error
}

#[tokio::test]
async fn users_and_roles_are_respected() {
    let etcd = with_users(&[]);
    let wrong = refused(as_user(&etcd, "panel", "wrong one")).await;
    assert_eq!(wrong.kind(), ErrorKind::PermissionDenied, "{wrong}");
    assert!(wrong.message().contains("user or the password"), "{wrong}");
    let nobody = refused(as_user(&etcd, "nobody", PASSWORD)).await;
    assert_eq!(nobody.kind(), ErrorKind::PermissionDenied, "{nobody}");
    assert!(nobody.message().contains("role"), "{nobody}");
    let without = refused(etcd.options()).await;
    assert_eq!(without.kind(), ErrorKind::PermissionDenied, "{without}");
    assert!(without.message().contains("no user was given"), "{without}");

    let panel = EtcdStore::connect(as_user(&etcd, "panel", PASSWORD))
        .await
        .unwrap();
    assert!(!format!("{panel:?}").contains(PASSWORD));
    let start = panel.commit(put("vm/a", 1)).await.unwrap();

    let reader = EtcdStore::connect(as_user(&etcd, "reader", PASSWORD))
        .await
        .unwrap();
    assert_eq!(
        reader.get(&key("vm/a")).await.unwrap().unwrap().value,
        value(1)
    );
    let mut watch = reader.watch(vec![String::new()], start).await.unwrap();
    let next = panel.commit(put("vm/a", 2)).await.unwrap();
    assert_eq!(told(&mut watch, next).await.len(), 1);
    let ttl = Duration::from_secs(5);
    for error in [
        reader.commit(put("vm/a", 3)).await.unwrap_err(),
        reader
            .put_beat(&key("node/a"), Some(value(1)))
            .await
            .unwrap_err(),
        reader.lease_acquire("leader", "a", ttl).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(
            error.message().contains("role") && !error.is_retryable(),
            "{error}"
        );
    }
    assert_eq!(
        panel.get(&key("vm/a")).await.unwrap().unwrap().value,
        value(2)
    );

    let mut outside = as_user(&etcd, "panel", PASSWORD);
    outside.prefix = "/other/".to_owned();
    assert_eq!(refused(outside).await.kind(), ErrorKind::PermissionDenied);
}

/// etcd forgets tokens after a while, and all of them when it is restarted: a new one is fetched unseen.
#[tokio::test]
async fn a_token_that_is_not_good_any_more_is_replaced() {
    let mut etcd = with_users(&["--auth-token-ttl", "1"]);
    let store = EtcdStore::connect(as_user(&etcd, "panel", PASSWORD))
        .await
        .unwrap();
    let start = store.commit(put("vm/a", 0)).await.unwrap();
    let mut watch = store.watch(vec![String::new()], start).await.unwrap();
    pass(Duration::from_secs(4)).await;
    store.commit(put("vm/a", 1)).await.unwrap();
    etcd.kill(0);
    etcd.restart(0);
    let last = store.commit(put("vm/a", 2)).await.unwrap();
    assert_eq!(told(&mut watch, last).await.len(), 2);
}

#[tokio::test]
async fn a_user_for_an_etcd_without_users_is_refused() {
    let etcd = Etcd::start();
    let error = refused(as_user(&etcd, "panel", PASSWORD)).await;
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    assert!(error.message().contains("authentication is off"), "{error}");
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name, and its key.
    fn certify(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

#[tokio::test]
async fn certificates_are_checked_on_both_sides() {
    let (ours, others) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (certificate, secret) = ours.certify("etcd.example");
    let args = [
        ("--cert-file", file("server.pem", &certificate)),
        ("--key-file", file("server.key", &secret)),
        ("--trusted-ca-file", file("ca.pem", &ours.pem())),
    ];
    let mut args: Vec<_> = args
        .into_iter()
        .flat_map(|(flag, path)| [flag.to_owned(), path])
        .collect();
    args.push("--client-cert-auth".to_owned());
    let etcd = Etcd::start_with(1, &Setup { args, tls: true });

    let (certificate, secret) = ours.certify("panel");
    let good = EtcdTls {
        ca: ours.pem(),
        identity: Some((certificate, secret.as_str().into())),
        server_name: Some("etcd.example".to_owned()),
    };
    let with = |tls: EtcdTls| {
        let mut options = etcd.options();
        options.timeout = Duration::from_secs(3);
        options.tls = Some(tls);
        options
    };
    let store = EtcdStore::connect(with(good.clone())).await.unwrap();
    store.commit(put("vm/a", 1)).await.unwrap();

    let wrong_name = EtcdTls {
        server_name: Some("other.example".to_owned()),
        ..good.clone()
    };
    let by_address = EtcdTls {
        server_name: None,
        ..good.clone()
    };
    let wrong_authority = EtcdTls {
        ca: others.pem(),
        ..good.clone()
    };
    for tls in [wrong_name, by_address, wrong_authority] {
        let error = refused(with(tls)).await;
        assert_eq!(
            error.kind(),
            ErrorKind::PermissionDenied,
            "{}",
            error.report()
        );
        assert!(error.message().contains("certificates"), "{error}");
        assert!(!error.report().contains(&secret), "{error}");
    }
    let anonymous = EtcdTls {
        identity: None,
        ..good.clone()
    };
    // TLS 1.3 tells the client that its certificate is missing only after the connection stands.
    let error = EtcdStore::connect(with(anonymous)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    assert!(error.to_string().contains("tls.identity"), "{error}");

    let mut plain = etcd.options();
    plain.endpoints = vec![format!("http://127.0.0.1:{}", etcd.port(0))];
    plain.timeout = Duration::from_secs(1);
    assert_eq!(refused(plain).await.kind(), ErrorKind::Unavailable);
    let garbage = EtcdTls {
        ca: "no certificate".to_owned(),
        ..good
    };
    let error = refused(with(garbage)).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.report());
}

#[tokio::test]
async fn an_endpoint_out_of_reach_is_named() {
    let mut options = EtcdOptions::new(["http://127.0.0.1:1"]);
    options.timeout = Duration::from_secs(1);
    let error = refused(options).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert!(error.report().contains("refused"), "{}", error.report());

    // One of two is enough.
    let etcd = Etcd::start();
    let both = ["http://127.0.0.1:1".to_owned(), etcd.endpoint(0)];
    let store = EtcdStore::connect(EtcdOptions::new(both)).await.unwrap();
    store.commit(put("vm/a", 1)).await.unwrap();
}

/// What somebody wrote by hand is shown as it is, or passed over if it is no record, and hurts nobody else.
#[tokio::test]
async fn what_was_written_by_hand_hurts_no_other_record() {
    let etcd = Etcd::start();
    let store = etcd.connect().await;
    let start = store.commit(put("vm/a", 1)).await.unwrap();
    let mut watch = store.watch(vec![String::new()], start).await.unwrap();
    etcd.ctl(&["put", "/novacron/r/vm/by-hand", "{ no JSON"]);
    etcd.ctl(&["put", "/novacron/r/no key", "1"]);
    etcd.ctl(&["put", "/novacron/b/no key", "1"]);
    etcd.ctl(&["put", "/novacron/l/leader", "1"]);
    etcd.ctl(&["put", "/novacron-2/r/vm/other", "1"]);

    let options = ListOptions {
        limit: 10,
        ..ListOptions::default()
    };
    let page = store.list("", options).await.unwrap();
    let keys: Vec<_> = page.records.iter().map(|r| r.key.as_str()).collect();
    assert_eq!(keys, ["vm/a", "vm/by-hand"]);
    let by_hand = store.get(&key("vm/by-hand")).await.unwrap().unwrap();
    assert_eq!(by_hand.value, "{ no JSON");
    assert!(store.beats("").await.unwrap().is_empty());

    let next = store.commit(put("vm/b", 1)).await.unwrap();
    let expected = vec!["vm/b".to_owned(), "vm/by-hand".to_owned()];
    assert_eq!(told(&mut watch, next).await, [(next, expected)]);

    let ttl = Duration::from_secs(5);
    let error = store.lease_acquire("leader", "a", ttl).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("/novacron/l/leader"), "{error}");
    let other = store.lease_acquire("owner/1", "a", ttl).await.unwrap();
    assert!(matches!(other, LeaseAnswer::Granted(_)));
}

/// Two clusters share an etcd under prefixes of their own.
#[tokio::test]
async fn prefixes_keep_clusters_apart() {
    let etcd = Etcd::start();
    let one = etcd.connect().await;
    let mut options = etcd.options();
    options.prefix = "/novacron/other/".to_owned();
    let other = EtcdStore::connect(options).await.unwrap();
    let revision = one.commit(put("vm/a", 1)).await.unwrap();
    assert_eq!(other.revision().await.unwrap().0, 0);
    assert_eq!(other.get(&key("vm/a")).await.unwrap(), None);
    other.commit(put("vm/a", 2)).await.unwrap();
    assert_eq!(one.revision().await.unwrap(), revision);
    assert_eq!(
        one.get(&key("vm/a")).await.unwrap().unwrap().value,
        value(1)
    );
}
