//! stand-in
#![allow(missing_docs)]
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
#[derive(Clone, Debug)]
pub struct Config { pub listen: Vec<Listen>, pub pool_mode: PoolMode, pub max_client_conn: usize, pub timeouts: Timeouts, pub server_reset_query: String, pub tcp: Tcp, pub log: Log, pub stats_period: Option<Duration>, pub endpoints: Vec<Endpoint>, pub databases: Vec<Database>, pub users: Users, pub cores: Cores }
#[derive(Clone, Debug)]
pub enum Listen { Tcp(SocketAddr), Unix(PathBuf, u16) }
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode { Session, Transaction, Statement }
#[derive(Clone, Debug)]
pub struct Timeouts { pub query_wait: Option<Duration>, pub server_idle: Option<Duration>, pub server_lifetime: Option<Duration>, pub server_connect: Duration, pub client_login: Option<Duration>, pub idle_transaction: Option<Duration>, pub client_idle: Option<Duration>, pub server_close: Duration, pub shutdown: Option<Duration> }
#[derive(Clone, Debug)]
pub struct Tcp { pub keepalive: bool, pub idle: Duration, pub interval: Duration, pub count: u32, pub user_timeout: Option<Duration>, pub socket_buffer: Option<usize>, pub backlog: u32 }
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel { Error, Warn, Info, Debug }
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat { Text, Json }
#[derive(Clone, Debug)]
pub struct Log { pub format: LogFormat, pub level: LogLevel, pub connections: bool, pub disconnections: bool }
#[derive(Clone, Debug)]
pub enum Host { Name(String), Address(IpAddr), Socket(PathBuf) }
#[derive(Clone, Debug)]
pub struct Endpoint { pub name: String, pub hosts: Vec<Host>, pub port: u16, pub max_connections: usize }
#[derive(Clone)]
pub struct Secret(pub String);
impl std::fmt::Debug for Secret { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("Secret") } }
impl Secret { pub fn expose(&self) -> &str { &self.0 } }
#[derive(Clone, Debug)]
pub struct Database { pub name: String, pub endpoint: usize, pub dbname: Option<String>, pub user: Option<String>, pub password: Option<Secret>, pub pool_mode: Option<PoolMode> }
#[derive(Clone, Debug, Default)]
pub struct Users;
impl Users { pub fn password(&self, _user: &str) -> Option<&Secret> { None } }
#[derive(Clone, Debug)]
pub struct Shard { pub cpu: usize, pub sq_entries: u32, pub cq_entries: u32, pub recv_buffers: u16, pub recv_buffer_bytes: u32, pub busy_poll: Duration }
#[derive(Clone, Debug)]
pub struct Cores { pub shards: Vec<Shard>, pub housekeeping: Vec<usize> }
impl Config {
    pub fn database(&self, name: &str) -> Option<&Database> { self.databases.iter().find(|d| d.name == name).or_else(|| self.databases.iter().find(|d| d.name == "*")) }
    pub fn pool_mode_of(&self, database: &Database) -> PoolMode { database.pool_mode.unwrap_or(self.pool_mode) }
}
impl Config {
    pub fn upstream(_hostport: &str, cpus: &[usize]) -> Result<Config, String> {
        let s = Duration::from_secs;
        Ok(Config { listen: vec![Listen::Tcp(([127,0,0,1], 6432).into())], pool_mode: PoolMode::Transaction, max_client_conn: 10000,
            timeouts: Timeouts { query_wait: Some(s(120)), server_idle: Some(s(600)), server_lifetime: Some(s(3600)), server_connect: s(15), client_login: Some(s(60)), idle_transaction: None, client_idle: None, server_close: s(5), shutdown: None },
            server_reset_query: "DISCARD ALL".into(), tcp: Tcp { keepalive: true, idle: s(5), interval: s(5), count: 5, user_timeout: Some(s(10)), socket_buffer: None, backlog: 4096 },
            log: Log { format: LogFormat::Text, level: LogLevel::Info, connections: true, disconnections: true }, stats_period: None,
            endpoints: vec![Endpoint { name: "main".into(), hosts: vec![Host::Address([127,0,0,1].into())], port: 5432, max_connections: 100 }],
            databases: vec![Database { name: "*".into(), endpoint: 0, dbname: None, user: None, password: None, pool_mode: None }],
            users: Users, cores: Cores { shards: cpus.iter().map(|&cpu| Shard { cpu, sq_entries: 1024, cq_entries: 8192, recv_buffers: 512, recv_buffer_bytes: 16384, busy_poll: Duration::ZERO }).collect(), housekeeping: vec![] } })
    }
}
impl Config { pub fn descriptors_needed(&self) -> usize { 100 } }
impl std::fmt::Display for Listen { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") } }
