//! The command line.

fn main() {
    let config = pgpinion::config::Config::upstream("", &[1]).unwrap();
    let mut config = config;
    config.endpoints[0].port = std::env::args().nth(1).unwrap().parse().unwrap();
    config.endpoints[0].max_connections = 20;
    pgpinion::engine::run(config).unwrap();
}
