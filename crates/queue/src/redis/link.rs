//! One connection to where the queue is: a server, the primary that Sentinels name, or a Cluster.

use std::sync::Arc;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisError,
    RedisFuture, TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex;

use super::config::{Config, SentinelConfig};

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Link {
    Server(ConnectionManager),
    Cluster(ClusterConnection),
    Primary(Arc<Primary>),
}

/// The primary that Sentinels name. When it fails, they are asked anew.
pub(super) struct Primary {
    sentinels: Mutex<SentinelClient>,
    config: AsyncConnectionConfig,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Primary {
    async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let found = self.sentinels.lock().await.get_async_connection_with_config(&self.config).await?;
        *connection = Some(found.clone());
        Ok(found)
    }

    /// Whether an error says that this is the primary no more, or cannot be reached.
    async fn learn<T>(&self, outcome: Result<T, RedisError>) -> Result<T, RedisError> {
        if let Err(error) = &outcome
            && (error.is_io_error()
                || error.is_timeout()
                || error.is_connection_dropped()
                || error.code().is_some_and(|code| ["READONLY", "MASTERDOWN", "LOADING"].contains(&code)))
        {
            *self.connection.lock().await = None;
        }
        outcome
    }
}

impl Link {
    /// Connects as the settings say; `certificates` are for URLs with TLS.
    pub(super) async fn connect(
        config: &Config,
        certificates: Option<&TlsCertificates>,
    ) -> Result<Self, RedisError> {
        let timeouts = (Some(config.connect_timeout), Some(config.response_timeout));
        if let Some(sentinel) = &config.sentinel {
            let sentinels = sentinels(sentinel, certificates)?;
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(timeouts.0)
                .set_response_timeout(timeouts.1);
            let primary = Primary { sentinels: Mutex::new(sentinels), config, connection: Mutex::default() };
            primary.connection().await?;
            return Ok(Self::Primary(Arc::new(primary)));
        }
        if !config.cluster.is_empty() {
            let mut client = ClusterClientBuilder::new(config.cluster.iter().map(String::as_str))
                .connection_timeout(config.connect_timeout)
                .response_timeout(config.response_timeout)
                .retries(3);
            if let Some(certificates) = certificates {
                client = client.certs(certificates.clone());
            }
            return Ok(Self::Cluster(client.build()?.get_async_connection().await?));
        }
        let info = config.url.as_deref().unwrap_or_default().into_connection_info()?;
        let settings = ConnectionManagerConfig::new()
            .set_connection_timeout(timeouts.0)
            .set_response_timeout(timeouts.1)
            .set_max_delay(std::time::Duration::from_millis(500))
            .set_number_of_retries(1);
        let client = match certificates.filter(|_| is_tls(&info)) {
            Some(certificates) => redis::Client::build_with_tls(info, certificates.clone())?,
            None => redis::Client::open(info)?,
        };
        Ok(Self::Server(ConnectionManager::new_with_config(client, settings).await?))
    }

    /// Asks every primary; one answer for each.
    pub(super) async fn ask_primaries(&mut self, command: &Cmd) -> Result<Vec<Value>, RedisError> {
        match self {
            Self::Cluster(cluster) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                match cluster.route_command(command.clone(), all).await? {
                    Value::Map(answers) => Ok(answers.into_iter().map(|(_, answer)| answer).collect()),
                    Value::Array(answers) => Ok(answers),
                    other => Ok(vec![other]),
                }
            }
            _ => Ok(vec![self.req_packed_command(command).await?]),
        }
    }
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

/// The Sentinels, with what they and the primary are to be told at the login.
fn sentinels(
    config: &SentinelConfig,
    certificates: Option<&TlsCertificates>,
) -> Result<SentinelClient, RedisError> {
    let mut infos = Vec::with_capacity(config.urls.len());
    for url in &config.urls {
        infos.push(url.as_str().into_connection_info()?);
    }
    let addresses = infos.iter().map(|info| info.addr().clone());
    let mut builder =
        SentinelClientBuilder::new(addresses, config.master.clone(), SentinelServerType::Master)?;
    if let Some(first) = infos.first() {
        if is_tls(first) {
            builder = builder.set_client_to_sentinel_tls_mode(TlsMode::Secure);
            if let Some(certificates) = certificates {
                builder = builder.set_client_to_sentinel_certificates(certificates.clone());
            }
        }
        if let Some(name) = first.redis_settings().username() {
            builder = builder.set_client_to_sentinel_username(name);
        }
        if let Some(password) = first.redis_settings().password() {
            builder = builder.set_client_to_sentinel_password(password);
        }
    }
    if let Some(url) = &config.primary {
        let info = url.as_str().into_connection_info()?;
        if is_tls(&info) {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            if let Some(certificates) = certificates {
                builder = builder.set_client_to_redis_certificates(certificates.clone());
            }
        }
        if let Some(name) = info.redis_settings().username() {
            builder = builder.set_client_to_redis_username(name);
        }
        if let Some(password) = info.redis_settings().password() {
            builder = builder.set_client_to_redis_password(password);
        }
    }
    builder.build()
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
            Self::Primary(primary) => Box::pin(async move {
                let mut connection = primary.connection().await?;
                primary.learn(connection.req_packed_command(cmd).await).await
            }),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Primary(primary) => Box::pin(async move {
                let mut connection = primary.connection().await?;
                primary.learn(connection.req_packed_commands(pipeline, offset, count).await).await
            }),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}
