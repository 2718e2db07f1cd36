//! The commands of a configuration: `PreUp`, `PostUp`, `PreDown`, `PostDown`.

use std::thread;

use anyhow::Context;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::{
    config::{Hook, HookTime},
    programs,
};

/// Those that may be run.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    name: String,
    hooks: Vec<Hook>,
}

impl Hooks {
    /// Hooks of the tunnel of this name.
    pub(crate) fn new(name: &str, hooks: Vec<Hook>) -> Self {
        Self { name: name.to_owned(), hooks }
    }

    /// Runs those of this time one by one, in the order of the file, while the task waits.
    ///
    /// # Errors
    /// The first that fails; those behind it are not run.
    pub(crate) async fn run(&self, at: HookTime) -> anyhow::Result<()> {
        for hook in self.hooks.iter().filter(|hook| hook.at == at) {
            let command = hook.command.replace("%i", &self.name);
            info!(tunnel = self.name, command, "running {at}");
            let (script, (done, ended)) = (command.clone(), oneshot::channel());
            // On a thread of its own, which the tunnel's end does not wait for: a hook may take as long as it likes.
            thread::Builder::new()
                .name("hook".to_owned())
                .spawn(move || done.send(programs::run(&["bash", "-c", &script], "")))?;
            ended.await?.with_context(|| format!("{at}: {command}"))?;
        }
        Ok(())
    }

    /// As [`run`](Self::run), but what fails is only said: the tunnel is ending.
    pub(crate) async fn run_at_end(&self, at: HookTime) {
        if let Err(error) = self.run(at).await {
            warn!(tunnel = self.name, "{error:#}");
        }
    }
}
