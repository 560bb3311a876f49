//! etcd without the store around it: the same transaction in the same messages, by a bare gRPC client.

use bytes::Bytes;
use novacron_core::{IdSource, SeededIds};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use uuid::Uuid;

use self::wire::{Call, Compare, LeaseGrantRequest, TxnRequest, get, put};
use crate::Result;
use crate::commits::{Client, value};

#[path = "../../novacron-core/src/store/etcd/wire.rs"]
#[allow(dead_code, unreachable_pub, reason = "the store uses the rest of it")]
mod wire;

const PREFIX: &str = "/raw/";

/// Clients that share one connection, as those of a store do.
#[derive(Clone)]
pub(crate) struct Raw {
    channel: Channel,
    lease: i64,
}

impl Raw {
    pub(crate) async fn connect(uri: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(uri.to_owned())?.tcp_nodelay(true);
        let channel = endpoint.connect().await?;
        let grant = LeaseGrantRequest { ttl: 4200 };
        let lease = ask(&channel, grant).await?.id;
        Ok(Self { channel, lease })
    }

    /// Writes a record as it is.
    pub(crate) async fn put(&self, key: &str) -> Result<()> {
        let success = vec![put(record(key), value().into(), 0)];
        let request = TxnRequest {
            success,
            ..TxnRequest::default()
        };
        ask(&self.channel, request).await?;
        Ok(())
    }

    pub(crate) fn client(&self) -> OfEtcd {
        OfEtcd {
            raw: self.clone(),
            ids: SeededIds::from_os(),
            value: value().into(),
        }
    }
}

/// One of the clients.
pub(crate) struct OfEtcd {
    raw: Raw,
    ids: SeededIds,
    value: Bytes,
}

impl Client for OfEtcd {
    async fn commit(&mut self, key: &str) -> Result<()> {
        let txn: Bytes = format!("{PREFIX}t/{}", Uuid::from_u128(self.ids.bits())).into();
        let key = record(key);
        let request = TxnRequest {
            compare: vec![
                Compare::created(txn.clone(), 0),
                Compare::present(key.clone()),
            ],
            failure: vec![get(txn.clone()), get(key.clone())],
            success: vec![
                put(key, self.value.clone(), 0),
                put(txn, Bytes::from_static(b"committed"), self.raw.lease),
                put(format!("{PREFIX}rev").into(), Bytes::new(), 0),
            ],
        };
        if ask(&self.raw.channel, request).await?.succeeded {
            return Ok(());
        }
        Err("a transaction of etcd did not find its record".into())
    }
}

fn record(key: &str) -> Bytes {
    format!("{PREFIX}r/{key}").into()
}

async fn ask<C: Call>(channel: &Channel, request: C) -> Result<C::Answer> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    let codec = ProstCodec::<C, C::Answer>::default();
    let path = PathAndQuery::from_static(C::PATH);
    let answer = grpc.unary(Request::new(request), path, codec).await?;
    Ok(answer.into_inner())
}
