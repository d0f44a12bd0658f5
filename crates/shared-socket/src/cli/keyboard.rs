//! Waiting for keys.

use std::fs::File;
use std::io::{IsTerminal, stdin};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::crossterm::event::{self, Event};

/// The terminal that keys come from.
pub(super) struct Keyboard(OwnedFd);

/// What came.
pub(super) enum Came {
    /// A key, or another size.
    Event(Event),
    Nothing,
    /// The terminal is gone: its window was closed, or its connection was lost.
    HangUp,
}

impl Keyboard {
    /// As crossterm chooses it.
    pub(super) fn new() -> std::io::Result<Self> {
        let input = stdin();
        Ok(Self(if input.is_terminal() {
            input.as_fd().try_clone_to_owned()?
        } else {
            File::options().read(true).write(true).open("/dev/tty")?.into()
        }))
    }

    fn look(&self, timeout: PollTimeout) -> std::io::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) | Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        Ok(!fds[0].revents().is_some_and(|seen| seen.intersects(gone)))
    }

    /// Whether the terminal is gone.
    pub(super) fn is_gone(&self) -> bool {
        !self.look(PollTimeout::ZERO).unwrap_or(false)
    }

    /// Waits so long. It is waited here, as crossterm 0.29 never returns from its own wait when the terminal goes meanwhile: it reads
    /// the end of the file again and again.
    pub(super) fn wait(&self, patience: Duration) -> std::io::Result<Came> {
        if !self.look(PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX))? {
            return Ok(Came::HangUp);
        }
        // a signal may have come for another size, and a key may have been read with the one before it
        Ok(if event::poll(Duration::ZERO)? { Came::Event(event::read()?) } else { Came::Nothing })
    }
}
