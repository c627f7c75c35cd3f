//! Reading the files again while everything runs: one new configuration for all shards, or nothing.
//!
//! The main thread reads and checks; shards only take over what is ready. A reload is over when every shard has said
//! that it has.

use super::Mail;
use super::process::{ShardThread, check_descriptors, permits_max, tell_one};
use crate::config::{Config, ConfigError, Reloaded};
use crate::control::log::Logger;
use crate::ids::ShardId;
use crate::log_line::Line;
use std::sync::Arc;

/// Reads the files, as at the start.
pub type Source<'a> = &'a dyn Fn() -> Result<Config, Vec<ConfigError>>;

/// What holds, and what is on its way.
pub(super) struct Reloads<'a> {
    source: Source<'a>,
    /// What holds, or is about to on all shards.
    pub config: Arc<Config>,
    pub logger: Logger,
    /// Counts the configurations that were published.
    generation: u64,
    /// More permits than this there cannot be in this process.
    permits_max: usize,
    /// Shards that have not said that they took over the last one.
    missing: usize,
    /// Clients of the console that wait for them: their shard, and their key there.
    askers: Vec<(ShardId, u64)>,
}

impl<'a> Reloads<'a> {
    pub fn new(source: Source<'a>, config: Arc<Config>, logger: Logger) -> Self {
        let permits_max = permits_max(&config);
        Self { source, config, logger, generation: 0, permits_max, missing: 0, askers: Vec::new() }
    }

    /// Reads the files again and gives the shards what is new. Says whether something is: what is wrong changes nothing.
    pub fn reload(&mut self, shards: &[ShardThread]) -> bool {
        match self.read() {
            Err(errors) => {
                for error in errors {
                    self.logger.line(Line::error(format!("reload: {error}")));
                }
                self.logger.line(Line::error("reload: nothing was changed"));
                false
            }
            Ok(reloaded) => {
                for change in &reloaded.needs_restart {
                    self.logger.line(Line::warn(format!("reload: needs a restart: {change}")));
                }
                for change in &reloaded.applied {
                    self.logger.line(Line::info(format!("reload: {change}")));
                }
                self.publish(reloaded.config, shards);
                true
            }
        }
    }

    fn read(&self) -> Result<Reloaded, Vec<ConfigError>> {
        let new = (self.source)()?;
        let refused = |fault: String| vec![ConfigError::new(fault)];
        let reloaded = self.config.reload(&new).map_err(refused)?;
        let (permits, most) = (reloaded.config.permits(), self.permits_max);
        if permits > most {
            let fault = format!(
                "`max_connections` of all endpoints are {permits} together; above {most} needs a restart"
            );
            return Err(refused(fault));
        }
        Ok(reloaded)
    }

    /// The same configuration is published as well: that all shards answer is worth knowing.
    fn publish(&mut self, config: Config, shards: &[ShardThread]) {
        self.config = Arc::new(config);
        self.logger = self.logger.with(&self.config.log);
        check_descriptors(&self.config, &self.logger);
        self.generation += 1;
        self.missing = shards.len();
        for (number, shard) in shards.iter().enumerate() {
            let mail = Mail::Configure { config: self.config.clone(), generation: self.generation };
            if !tell_one(shard, mail) {
                let text = format!("reload: shard {number} does not read its mail, and goes on as before");
                self.logger.line(Line::error(text));
            }
        }
    }

    /// The same for a client of the console, who is told when all shards have it.
    pub fn reload_for(&mut self, shard: ShardId, client: u64, shards: &[ShardThread]) {
        if self.reload(shards) {
            self.askers.push((shard, client));
        } else {
            answer(shards, shard, client, false);
        }
    }

    /// A shard took one over.
    pub fn applied(&mut self, generation: u64, shards: &[ShardThread]) {
        if generation != self.generation || self.missing == 0 {
            return;
        }
        self.missing -= 1;
        if self.missing == 0 {
            self.logger.line(Line::info("reload: applied on all shards"));
            for (shard, client) in self.askers.drain(..) {
                answer(shards, shard, client, true);
            }
        }
    }
}

/// A shard that does not read its mail keeps its client waiting until that is told so.
fn answer(shards: &[ShardThread], shard: ShardId, client: u64, good: bool) {
    tell_one(&shards[usize::from(shard.0)], Mail::Reloaded { client, good });
}
