//! Handlers that do more than read: stop the manager that runs them, panic,
//! drop the last handle.

use std::sync::OnceLock;

use super::*;

/// A manager whose handler may use it. The handle is taken out again by the
/// test, since a manager that its own handler keeps would never go.
#[derive(Clone, Default)]
struct SelfHandle(Arc<Mutex<Option<Manager>>>);

impl SelfHandle {
    fn get(&self) -> Option<Manager> {
        self.0.lock().unwrap().clone()
    }

    fn take(&self) -> Option<Manager> {
        self.0.lock().unwrap().take()
    }
}

/// A running manager whose handler is called once, with the manager.
fn running_with(act: impl FnOnce(Manager) + Send + 'static) -> (Manager, SelfHandle) {
    let own = SelfHandle::default();
    let (for_handler, mut act) = (own.clone(), Some(act));
    let manager = getpid_builder(move |_| {
        // Taken before anything else: the handler is called again if it starts
        // the manager anew.
        if let Some(act) = act.take() {
            act(for_handler.get().expect("the test put it there"));
        }
    });
    let manager = manager.build().unwrap();
    *own.0.lock().unwrap() = Some(manager.clone());
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    (manager, own)
}

/// What a handler tells its test.
#[derive(Clone)]
struct Said<T>(Arc<OnceLock<T>>);

impl<T: Clone + Send + Sync + std::fmt::Debug + 'static> Said<T> {
    fn new() -> Said<T> {
        Said(Arc::new(OnceLock::new()))
    }

    fn say(&self, what: T) {
        self.0.set(what).expect("says it once");
    }

    /// Provokes events until the handler has spoken.
    fn wait(&self) -> T {
        act_until("word of the handler", || hit(1), || self.0.get().is_some());
        self.0.get().unwrap().clone()
    }
}

#[test]
fn handler_may_stop_its_manager() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let said = Said::new();
    let to_test = said.clone();
    let (manager, own) = running_with(move |manager| {
        let first = manager.stop();
        let state = manager.state();
        // Nothing is left to do, and nobody to wait for.
        to_test.say((first, state, manager.stop()));
    });
    assert_eq!(said.wait(), (Ok(()), State::Declared, Ok(())));
    // Joins the reader.
    let waiting = manager.clone();
    within("stop after a handler's stop", move || waiting.stop()).unwrap();
    assert_eq!(manager.state(), State::Declared);

    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    manager.stop().unwrap();
    own.take();
}

#[test]
fn drop_waits_for_a_handler_that_stopped() {
    if !require(&RING_BUFFER) {
        return;
    }
    let leaks = LeakCheck::begin();
    let said = Said::new();
    let (to_test, ended) = (said.clone(), Arc::new(AtomicBool::new(false)));
    let end = Arc::clone(&ended);
    let (manager, own) = running_with(move |manager| {
        to_test.say(manager.stop());
        drop(manager);
        thread::sleep(Duration::from_millis(30));
        end.store(true, Ordering::Release);
    });
    said.wait().unwrap();
    own.take();
    // The handler may still have its handle; whoever drops the last one.
    drop(manager);
    leaks.finish();
    assert!(ended.load(Ordering::Acquire));
}

/// The reader's own thread cannot wait for itself: it ends by itself.
#[test]
fn handler_may_drop_the_last_handle() {
    if !require(&RING_BUFFER) {
        return;
    }
    let leaks = LeakCheck::begin();
    let (called, said) = (Said::new(), Said::new());
    let (call, to_test, gate) = (called.clone(), said.clone(), Arc::new(Mutex::new(())));
    let behind_gate = Arc::clone(&gate);
    let closed = gate.lock().unwrap();
    let (manager, own) = running_with(move |manager| {
        call.say(());
        drop(behind_gate.lock().unwrap());
        to_test.say(manager.state());
        drop(manager);
    });
    called.wait();
    own.take();
    drop(manager);
    drop(closed);
    leaks.finish();
    assert_eq!(said.wait(), State::Running);
}

/// An action that waits for a handler tells it so instead of waiting for ever.
#[test]
fn handler_is_told_busy_while_its_manager_stops() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (called, said) = (Said::new(), Said::new());
    let (to_test, call) = (said.clone(), called.clone());
    let (manager, own) = running_with(move |manager| {
        call.say(());
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Nothing to do, or busy.
            match manager.start() {
                Ok(()) if Instant::now() < deadline => thread::yield_now(),
                result => break to_test.say((result, manager.stop(), manager.state())),
            }
        }
    });
    called.wait();
    let stopping = manager.clone();
    within("stop", move || stopping.stop()).unwrap();
    let busy = |action| {
        Err(ManagerError::Busy {
            action,
            running: Action::Stop,
        })
    };
    let (start, stop, state) = said.wait();
    assert_eq!(start, busy(Action::Start));
    assert_eq!(stop, busy(Action::Stop));
    assert_eq!(state, State::Running);
    let text = start.unwrap_err().to_string();
    assert_eq!(text, "cannot start while another stop is under way");
    own.take();
}

/// A manager has one reader. A handler that stopped its manager is still on
/// it, so it may load again but not start.
#[test]
fn handler_may_not_start_behind_its_own_back() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let said = Said::new();
    let to_test = said.clone();
    let (manager, own) = running_with(move |manager| {
        manager.stop().unwrap();
        let init = manager.init(&attach_object());
        let start = manager.start();
        to_test.say((init, start, manager.stop()));
    });
    let waiting = said.clone();
    let (init, start, stop) = within("the handler", move || waiting.wait());
    init.unwrap();
    let busy = ManagerError::Busy {
        action: Action::Start,
        running: Action::Stop,
    };
    assert_eq!(start, Err(busy));
    stop.unwrap();
    own.take();
    within("drop", move || drop(manager));
}

/// Another thread starts the manager anew while the handler that stopped it
/// is still running, and that handler stops it once more.
#[test]
fn restart_waits_for_the_handler_that_stopped() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (said, last) = (Said::new(), Said::new());
    let (to_test, last_to_test) = (said.clone(), last.clone());
    let (manager, own) = running_with(move |manager| {
        to_test.say(manager.stop());
        // Until the other thread is at it, or for long enough.
        for _ in 0..200 {
            if let busy @ Err(_) = manager.stop() {
                return last_to_test.say(busy);
            }
            thread::sleep(Duration::from_millis(1));
        }
        last_to_test.say(manager.stop());
    });
    said.wait().unwrap();
    let restarting = manager.clone();
    within("restart", move || {
        restarting.init(&attach_object()).unwrap();
        restarting.start().unwrap();
        restarting.stop().unwrap();
    });
    let busy = ManagerError::Busy {
        action: Action::Stop,
        running: Action::Init,
    };
    assert_eq!(last.wait(), Err(busy));
    own.take();
}

#[test]
fn panic_of_a_handler_is_reported_by_stop() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Thrown past the hook that would print them.
    let panics: [fn(); 3] = [
        || std::panic::resume_unwind(Box::new("bad record")),
        || std::panic::resume_unwind(Box::new(String::from("bad record"))),
        || std::panic::resume_unwind(Box::new(7)),
    ];
    for (panic, message) in panics.into_iter().zip(["bad record", "bad record", ""]) {
        let (manager, own) = running_with(move |manager| {
            drop(manager);
            panic();
        });
        hit(10);
        let stopping = manager.clone();
        let err = within("stop", move || stopping.stop()).unwrap_err();
        let panicked = ManagerError::HandlerPanicked {
            map: "hits".to_owned(),
            message: message.to_owned(),
        };
        assert_eq!(err, ManagerError::Stop(vec![panicked]));
        assert_eq!(
            err.to_string(),
            format!("stopped, but an event handler of hits panicked: {message}")
        );
        assert_eq!(manager.state(), State::Declared);
        // It is over with that.
        manager.stop().unwrap();
        manager.init(&attach_object()).unwrap();
        manager.start().unwrap();
        manager.stop().unwrap();
        own.take();
    }
}

/// A handler that stops its manager and then panics: the next action says so.
#[test]
fn panic_after_a_handlers_stop_is_reported_by_the_next_action() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let said = Said::new();
    let to_test = said.clone();
    let (manager, own) = running_with(move |manager| {
        to_test.say(manager.stop());
        drop(manager);
        std::panic::resume_unwind(Box::new("too late"));
    });
    said.wait().unwrap();
    let err = manager.init(&attach_object()).unwrap_err();
    assert_eq!(
        err.to_string(),
        "an event handler of hits panicked: too late"
    );
    assert_eq!(manager.state(), State::Declared);
    manager.init(&attach_object()).unwrap();
    manager.stop().unwrap();
    own.take();
}

/// As above, with a stop as the next action, which goes through.
#[test]
fn stop_joins_a_handler_that_panicked_and_stops() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let said = Said::new();
    let to_test = said.clone();
    let (manager, own) = running_with(move |manager| {
        let stop = manager.stop();
        to_test.say((stop, manager.init(&attach_object())));
        drop(manager);
        std::panic::resume_unwind(Box::new("too late"));
    });
    assert_eq!(said.wait(), (Ok(()), Ok(())));
    let panicked = ManagerError::HandlerPanicked {
        map: "hits".to_owned(),
        message: "too late".to_owned(),
    };
    assert_eq!(manager.stop(), Err(ManagerError::Stop(vec![panicked])));
    assert_eq!(manager.state(), State::Declared);
    manager.stop().unwrap();
    own.take();
}

#[test]
fn dropping_survives_a_handlers_panic() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (manager, own) = running_with(move |manager| {
        drop(manager);
        std::panic::resume_unwind(Box::new("bad record"));
    });
    hit(10);
    own.take();
    within("drop", move || drop(manager));
}
