//! Whether each thread's loop goes on: what a watchdog wants to know.

use tokio::sync::watch;

/// Asks all threads.
#[derive(Debug)]
pub(crate) struct Pulse {
    question: watch::Sender<u64>,
    answers: Vec<watch::Receiver<u64>>,
}

/// A thread's side.
#[derive(Debug)]
pub(crate) struct Responder {
    question: watch::Receiver<u64>,
    answer: watch::Sender<u64>,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self { question: watch::Sender::new(0), answers: vec![] }
    }

    /// Adds a thread.
    pub(crate) fn responder(&mut self) -> Responder {
        let (answer, answers) = watch::channel(0);
        self.answers.push(answers);
        Responder { question: self.question.subscribe(), answer }
    }

    /// Waits until every thread that has not ended has gone through its loop.
    pub(crate) async fn beat(&self) {
        self.question.send_modify(|number| *number += 1);
        let number = *self.question.borrow();
        for answers in &self.answers {
            // An error: the thread has ended, in order or not, which others notice.
            let _ = answers.clone().wait_for(|answer| *answer >= number).await;
        }
    }
}

impl Responder {
    /// Answers for as long as somebody may ask.
    pub(crate) async fn run(mut self) {
        while self.question.changed().await.is_ok() {
            self.answer.send_replace(*self.question.borrow_and_update());
        }
    }
}
