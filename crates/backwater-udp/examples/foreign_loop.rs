//! A program whose event loop is not tokio's: `cargo run -p backwater-udp --example foreign_loop`.
//!
//! A tokio runtime of one thread watches the sockets and the timers, and does nothing else. The program polls its sockets from its
//! own loop, with a waker that wakes this loop. Here the loop blocks in a channel; one that blocks in `epoll_wait`, `kevent` or a
//! library's loop wakes it through an eventfd or a pipe instead.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use backwater_udp::{QueueBounds, RecvBatch, SendQueue, Transmit, UdpSocket};

/// What the loop waits for.
enum Event {
    /// A socket may be readable, or have room.
    Socket,
    /// Something else of the program's: here, a line to be sent.
    Line(&'static str),
}

/// Wakes the loop.
struct LoopWaker(Sender<Event>);

impl Wake for LoopWaker {
    fn wake(self: Arc<Self>) {
        // An error means that the loop has ended.
        let _ = self.0.send(Event::Socket);
    }
}

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // Sockets and timers made on this thread belong to the runtime.
    let _guard = runtime.enter();

    let (events, inbox) = mpsc::channel();
    let waker = Waker::from(Arc::new(LoopWaker(events.clone())));
    let mut cx = Context::from_waker(&waker);

    let loopback = || UdpSocket::bind(([127, 0, 0, 1], 0).into());
    let (socket, echo) = (loopback()?, loopback()?);
    let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
    let (mut receiver, mut batch) = (socket.receiver(), RecvBatch::new(8));
    runtime.spawn(echo_server(echo.clone()));

    let lines = ["one", "two", "three"];
    std::thread::spawn(move || lines.map(|line| events.send(Event::Line(line))));

    let mut echoed = 0;
    // The first turn polls without an event, so that the waker is registered.
    let mut event = Some(Event::Socket);
    while echoed < lines.len() {
        match event {
            Some(Event::Line(line)) => {
                // Returns at once. What the system refuses waits in the queue, and wakes the loop when there may be room.
                queue
                    .send(echo.local_addr(), &mut Transmit::new(echo.local_addr(), &[IoSlice::new(line.as_bytes())]))?;
            }
            Some(Event::Socket) | None => {}
        }
        if let Poll::Ready(Err(error)) = queue.poll_flush(&mut cx) {
            return Err(error);
        }
        // `Pending` registers the waker; after `Ready` the socket has to be polled again.
        while let Poll::Ready(received) = receiver.poll_recv(&mut cx, &mut batch) {
            received?;
            for datagram in batch.datagrams() {
                println!("{}", String::from_utf8_lossy(datagram.payload));
                echoed += 1;
            }
        }
        // The loop's own timers bound the wait.
        event = match inbox.recv_timeout(Duration::from_secs(1)) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
    }
    Ok(())
}

async fn echo_server(socket: UdpSocket) -> io::Result<()> {
    let (mut receiver, mut sender, mut batch) = (socket.receiver(), socket.sender(), RecvBatch::new(8));
    loop {
        receiver.recv(&mut batch).await?;
        for datagram in batch.datagrams() {
            sender.send_to(datagram.payload, datagram.source).await?;
        }
    }
}
