//! Word to the service manager: how the mediator is, and signs of life, which the loop itself sends.

use std::time::Duration;

use isthmus_engine::Engine;

use crate::mediator::Mediator;

impl Mediator {
    /// The loop begins. A tunnel is not waited for: the relay may be away for longer than a start may take.
    pub(crate) fn tell_ready(&mut self, engine: &mut Engine) {
        self.manager.ready("no tunnel yet");
        self.keep_telling(engine);
    }

    /// The loop has turned: the manager is told, and will be again. A timer of the loop's own is what asks the loop.
    pub(crate) fn keep_telling(&mut self, engine: &mut Engine) {
        let Some(beat) = self.manager.beat() else { return };
        self.manager.alive();
        engine.set_timer(self.timers.alive, engine.now() + beat.max(BEAT_MIN));
    }

    /// SIGHUP.
    pub(crate) fn reload_and_tell(&mut self, engine: &mut Engine) {
        self.manager.reloading();
        let refused = self.reload(engine).err();
        match refused {
            Some(error) => self.manager.ready(&format!("runs with the settings from before: {error}")),
            None if self.up => self.manager.ready("tunnel up"),
            None => self.manager.ready("no tunnel"),
        }
    }
}

/// A manager that wants more than this would cost more than it tells.
const BEAT_MIN: Duration = Duration::from_millis(10);
