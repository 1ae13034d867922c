//! Frames of a call that can be tried again, as long as none of them has left.
//!
//! A connection may end between the moment at which a call is begun and the one at which it is sent: its age is
//! over, or the process behind it stops. Nobody has seen anything of the call then.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio_stream::Stream;

use crate::Frames;

/// Where the frames of a call are while they are not being sent.
pub(crate) struct Unsent<F>(Arc<Mutex<Option<Frames<F>>>>);

/// The frames on their way. Dropped before the first of them has left, they go back to where they were.
pub(crate) struct Sending<F> {
    home: Arc<Mutex<Option<Frames<F>>>>,
    frames: Option<Frames<F>>,
    has_left: bool,
}

impl<F> Unsent<F> {
    pub(crate) fn new(frames: Frames<F>) -> Self {
        Self(Arc::new(Mutex::new(Some(frames))))
    }

    /// Takes the frames, to be sent.
    pub(crate) fn send(&self) -> Sending<F> {
        let frames = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Sending { home: Arc::clone(&self.0), frames, has_left: false }
    }

    /// Whether they are here, and whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl<F> Stream for Sending<F> {
    type Item = F;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<F>> {
        let this = &mut *self;
        let Some(frames) = &mut this.frames else { return Poll::Ready(None) };
        let frame = ready!(frames.poll_recv(context));
        this.has_left = true;
        Poll::Ready(frame)
    }
}

impl<F> Drop for Sending<F> {
    fn drop(&mut self) {
        if !self.has_left {
            *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.frames.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames_of;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn frames_come_back_until_one_has_left() {
        let unsent = Unsent::new(frames_of(vec![1, 2]));
        let first = unsent.send();
        assert!(!unsent.is_whole());
        drop(first);
        assert!(unsent.is_whole());
        let mut second = unsent.send();
        assert_eq!(second.next().await, Some(1));
        drop(second);
        assert!(!unsent.is_whole());
    }
}
