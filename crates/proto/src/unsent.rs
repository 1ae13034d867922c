//! Frames of a call that can be sent again, as long as nobody can have acted on them.
//!
//! A connection may end between the moment at which a call is begun and the one at which it arrives: its age is
//! over, or the process behind it stops. Frames that had not left, or had left and were refused with the whole
//! call, go out anew over another connection.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio_stream::Stream;

use crate::Frames;

/// How many frames that have left are kept. With the chunks' size this is what a peer takes in before it says
/// anything: whoever has let more pass has begun to act.
const KEPT: usize = 5;

/// The frames of a call, over all times that it is sent.
pub(crate) struct Unsent<F>(Arc<Mutex<State<F>>>);

struct State<F> {
    frames: Frames<F>,
    /// The frames that have left, from the first on; none once they are too many.
    kept: Option<Vec<F>>,
    /// How often they have been sent. Only the last time gets frames.
    round: u32,
}

/// The frames on their way.
pub(crate) struct Sending<F> {
    state: Arc<Mutex<State<F>>>,
    round: u32,
    next: usize,
}

impl<F> Unsent<F> {
    pub(crate) fn new(frames: Frames<F>) -> Self {
        Self(Arc::new(Mutex::new(State { frames, kept: Some(Vec::new()), round: 0 })))
    }

    /// Sends the frames from the first on. What was sending them before gets no more.
    pub(crate) fn send(&self) -> Sending<F> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.round += 1;
        Sending { state: Arc::clone(&self.0), round: state.round, next: 0 }
    }

    /// Whether they can be sent again: none has left, or they are still here and were refused `unseen`.
    pub(crate) fn may_go_again(&self, unseen: bool) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.kept.as_ref().is_some_and(|kept| unseen || kept.is_empty())
    }
}

impl<F: Clone> Stream for Sending<F> {
    type Item = F;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<F>> {
        let this = &mut *self;
        let mut state = this.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.round != this.round {
            return Poll::Ready(None);
        }
        let again = state.kept.as_ref().and_then(|kept| kept.get(this.next)).cloned();
        if again.is_some() {
            this.next += 1;
            return Poll::Ready(again);
        }
        let frame = ready!(state.frames.poll_recv(context));
        if let (Some(frame), Some(kept)) = (&frame, &mut state.kept) {
            if kept.len() < KEPT {
                kept.push(frame.clone());
                this.next += 1;
            } else {
                state.kept = None;
            }
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames_of;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn frames_go_out_again_from_the_first_on() {
        let unsent = Unsent::new(frames_of(vec![1, 2, 3]));
        assert!(unsent.may_go_again(false));
        let mut first = unsent.send();
        assert_eq!((first.next().await, first.next().await), (Some(1), Some(2)));
        assert!(!unsent.may_go_again(false) && unsent.may_go_again(true));
        let mut second = unsent.send();
        assert_eq!(first.next().await, None);
        assert_eq!(second.collect_up_to(4).await, [1, 2, 3]);
    }

    #[tokio::test]
    async fn frames_are_let_go_when_they_are_many() {
        let unsent = Unsent::new(frames_of((0..=KEPT).collect()));
        let mut sending = unsent.send();
        assert_eq!(sending.collect_up_to(KEPT).await.len(), KEPT);
        assert!(unsent.may_go_again(true));
        assert_eq!(sending.next().await, Some(KEPT));
        assert!(!unsent.may_go_again(true));
    }

    impl<F: Clone> Sending<F> {
        async fn collect_up_to(&mut self, count: usize) -> Vec<F> {
            let mut all = Vec::new();
            while all.len() < count
                && let Some(frame) = self.next().await
            {
                all.push(frame);
            }
            all
        }
    }
}
