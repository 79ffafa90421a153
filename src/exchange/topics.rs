//! Publish and subscribe between the instances of one subject.
//!
//! Owns: per topic one short log of posts, and each subscriber's place in it. Never: waits for a subscriber. One that
//! falls a whole log behind loses the oldest posts (counted); nobody else notices.
//!
//! One log per topic rather than one queue per subscriber: a thousand subscribers cost a thousand numbers.

use crate::identity::Subject;
use crate::limits;
use event_listener::Event;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All topics of all subjects.
#[derive(Default)]
pub struct Topics(Arc<Shared>);

#[derive(Default)]
struct Shared {
    // Lock order: scopes, then a topic's log.
    scopes: Mutex<HashMap<Subject, Scope>>,
    dropped: AtomicU64,
}

/// One subject's topics; gone with the last subscriber.
#[derive(Default)]
struct Scope {
    topics: HashMap<String, Arc<Topic>>,
    subscribers: usize,
    /// Of all its logs.
    bytes: usize,
}

#[derive(Default)]
struct Topic {
    log: Mutex<Log>,
    posted: Event,
}

#[derive(Default)]
struct Log {
    /// Sequence number of `posts[0]`.
    first: u64,
    posts: VecDeque<Arc<str>>,
    bytes: usize,
    subscribers: usize,
}

impl Log {
    fn end(&self) -> u64 {
        self.first + self.posts.len() as u64
    }

    /// Forgets the oldest post and says how many bytes that freed.
    fn forget_oldest(&mut self) -> usize {
        let Some(post) = self.posts.pop_front() else { return 0 };
        self.first += 1;
        self.bytes -= post.len();
        post.len()
    }

    /// Forgets all posts, and the room for them, and says how many bytes that freed.
    fn forget_all(&mut self) -> usize {
        self.first = self.end();
        self.posts = VecDeque::new();
        std::mem::take(&mut self.bytes)
    }
}

/// What a broadcast came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Subscribers that may be woken.
    pub reached: usize,
    /// Topics looked at to make room.
    pub looked_at: usize,
}

/// Why a broadcast or a subscription was refused. `Display` is a sentence for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NameTooLong(usize),
    PostTooLong(usize),
    TooManyTopics,
    TooManySubscribers,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NameTooLong(n) => {
                write!(f, "a topic name of {n} bytes; at most {} are allowed", limits::TOPIC_NAME_BYTES)
            }
            Refusal::PostTooLong(n) => {
                write!(f, "a broadcast of {n} bytes; at most {} are allowed", limits::MESSAGE_BYTES)
            }
            Refusal::TooManyTopics => {
                write!(f, "{} topics are in use; unsubscribe from some first", limits::TOPICS_PER_SUBJECT)
            }
            Refusal::TooManySubscribers => {
                write!(f, "{} subscriptions are open; drop some first", limits::SUBSCRIBERS_PER_SUBJECT)
            }
        }
    }
}

impl std::error::Error for Refusal {}

impl Topics {
    /// Posts from now on, until the subscription is dropped.
    pub fn subscribe(&self, subject: &Subject, name: &str) -> Result<Subscription, Refusal> {
        check_name(name)?;
        let mut scopes = self.0.lock();
        let scope = scopes.entry(subject.clone()).or_default();
        if scope.subscribers >= limits::SUBSCRIBERS_PER_SUBJECT {
            return Err(Refusal::TooManySubscribers);
        }
        let topic = match scope.topics.get(name) {
            Some(topic) => topic.clone(),
            None if scope.topics.len() >= limits::TOPICS_PER_SUBJECT => return Err(Refusal::TooManyTopics),
            None => scope.topics.entry(name.to_owned()).or_default().clone(),
        };
        scope.subscribers += 1;
        let mut log = lock(&topic.log);
        log.subscribers += 1;
        let place = Place { name: Some(name.to_owned()), next: log.end(), dropped: 0 };
        drop(log);
        let (shared, subject) = (self.0.clone(), subject.clone());
        Ok(Subscription { shared, subject, topic, place: Mutex::new(place) })
    }

    /// Reaches every live subscriber of the topic; with none the post is gone. Answers the work that it was.
    pub fn broadcast(&self, subject: &Subject, name: &str, post: &str) -> Result<Work, Refusal> {
        check_name(name)?;
        if post.len() > limits::MESSAGE_BYTES {
            return Err(Refusal::PostTooLong(post.len()));
        }
        let mut scopes = self.0.lock();
        let Some(scope) = scopes.get_mut(subject) else { return Ok(Work::default()) };
        let Some(topic) = scope.topics.get(name).cloned() else { return Ok(Work::default()) };
        let reached = {
            let mut log = lock(&topic.log);
            let full = |log: &Log| {
                log.posts.len() >= limits::TOPIC_POSTS || log.bytes + post.len() > limits::TOPIC_BYTES
            };
            while !log.posts.is_empty() && full(&log) {
                scope.bytes -= log.forget_oldest();
            }
            log.posts.push_back(post.into());
            log.bytes += post.len();
            scope.bytes += post.len();
            log.subscribers
        };
        let looked_at = scope.fit();
        drop(scopes);
        topic.posted.notify(usize::MAX);
        Ok(Work { reached, looked_at })
    }

    /// Posts that slow subscribers have lost so far.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Scope {
    /// Over its bytes, a subject loses the oldest posts of its largest topic, as many as it takes, and then of the next
    /// largest. Answers how many topics were looked at: finding the largest anew for each post would hold all subjects
    /// up for a tenth of a second, where posts are small.
    fn fit(&mut self) -> usize {
        let mut looked_at = 0;
        while self.bytes > limits::TOPIC_BYTES_PER_SUBJECT {
            looked_at += self.topics.len();
            let Some(largest) = self.topics.values().max_by_key(|topic| lock(&topic.log).bytes) else {
                break;
            };
            let mut log = lock(&largest.log);
            while self.bytes > limits::TOPIC_BYTES_PER_SUBJECT && !log.posts.is_empty() {
                self.bytes -= log.forget_oldest();
            }
        }
        looked_at
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.len() > limits::TOPIC_NAME_BYTES { Err(Refusal::NameTooLong(name.len())) } else { Ok(()) }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Subject, Scope>> {
        lock(&self.scopes)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks can panic half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One subscriber's place in one topic. Dropping it unsubscribes.
pub struct Subscription {
    shared: Arc<Shared>,
    subject: Subject,
    topic: Arc<Topic>,
    place: Mutex<Place>,
}

struct Place {
    /// The topic's; none once it has unsubscribed.
    name: Option<String>,
    next: u64,
    dropped: u64,
}

impl Subscription {
    /// True when [`take`](Subscription::take) has something to give, or never will again.
    pub fn ready(&self) -> bool {
        let place = lock(&self.place);
        place.name.is_none() || place.next < lock(&self.topic.log).end()
    }

    pub async fn wait(&self) {
        while !self.ready() {
            let posted = self.topic.posted.listen();
            if self.ready() {
                return;
            }
            posted.await;
        }
    }

    /// The oldest post not yet taken that the log still has.
    pub fn take(&self) -> Option<Arc<str>> {
        let mut place = lock(&self.place);
        place.name.as_ref()?;
        let log = lock(&self.topic.log);
        if place.next < log.first {
            let lost = log.first - place.next;
            place.dropped += lost;
            self.shared.dropped.fetch_add(lost, Ordering::Relaxed);
            place.next = log.first;
        }
        let post = log.posts.get((place.next - log.first) as usize)?.clone();
        place.next += 1;
        Some(post)
    }

    /// Posts this subscriber lost by being slow, as far as it has read.
    pub fn dropped(&self) -> u64 {
        lock(&self.place).dropped
    }

    /// Yields nothing from here on and wakes who waits on it. What is kept of it afterwards (a pollable) keeps no post: those
    /// of a topic without subscribers count with nobody.
    pub fn unsubscribe(&self) {
        let Some(name) = lock(&self.place).name.take() else { return };
        let mut scopes = self.shared.lock();
        if let Some(scope) = scopes.get_mut(&self.subject) {
            scope.subscribers -= 1;
            let mut log = lock(&self.topic.log);
            log.subscribers -= 1;
            if log.subscribers == 0 {
                scope.bytes -= log.forget_all();
                scope.topics.remove(&name);
            }
            if scope.subscribers == 0 {
                scopes.remove(&self.subject);
            }
        }
        drop(scopes);
        self.topic.posted.notify(usize::MAX);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.unsubscribe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::block_on;

    #[test]
    fn a_thousand_subscribers_each_get_every_post_in_order() {
        let (topics, me) = (Topics::default(), Subject::new("a"));
        let subscriptions: Vec<_> = (0..1000).map(|_| topics.subscribe(&me, "t").unwrap()).collect();
        assert_eq!(topics.broadcast(&me, "t", "one").map(|work| work.reached), Ok(1000));
        assert_eq!(topics.broadcast(&me, "t", "two").map(|work| work.reached), Ok(1000));
        for subscription in &subscriptions {
            block_on(subscription.wait());
            assert_eq!(subscription.take().as_deref(), Some("one"));
            assert_eq!(subscription.take().as_deref(), Some("two"));
            assert_eq!(subscription.take(), None);
        }
        assert_eq!(topics.dropped(), 0);
    }

    #[test]
    fn subjects_do_not_hear_each_other_and_late_ones_hear_only_what_follows() {
        let topics = Topics::default();
        let (a, b) = (Subject::new("a"), Subject::new("b"));
        let early = topics.subscribe(&a, "t").unwrap();
        assert_eq!(topics.broadcast(&b, "t", "not for a").map(|work| work.reached), Ok(0));
        topics.broadcast(&a, "t", "before").unwrap();
        let late = topics.subscribe(&a, "t").unwrap();
        topics.broadcast(&a, "t", "after").unwrap();
        assert_eq!(early.take().as_deref(), Some("before"));
        assert_eq!(late.take().as_deref(), Some("after"));
        assert_eq!(late.take(), None);
    }

    #[test]
    fn a_slow_subscriber_loses_the_oldest_and_they_are_counted() {
        let (topics, me) = (Topics::default(), Subject::everyone());
        let (slow, quick) = (topics.subscribe(&me, "t").unwrap(), topics.subscribe(&me, "t").unwrap());
        for i in 0..limits::TOPIC_POSTS + 3 {
            topics.broadcast(&me, "t", &i.to_string()).unwrap();
            assert_eq!(quick.take().as_deref(), Some(i.to_string().as_str()));
        }
        assert_eq!(slow.take().as_deref(), Some("3"));
        assert_eq!((slow.dropped(), quick.dropped(), topics.dropped()), (3, 0, 3));
    }

    #[test]
    fn bytes_are_bounded_per_topic_and_per_subject() {
        let (topics, me) = (Topics::default(), Subject::everyone());
        let big = "x".repeat(limits::MESSAGE_BYTES);
        let names: Vec<String> = (0..64).map(|i| format!("t{i}")).collect();
        let open: Vec<_> = names.iter().map(|name| topics.subscribe(&me, name).unwrap()).collect();
        for name in names.iter().cycle().take(256) {
            topics.broadcast(&me, name, &big).unwrap();
            let scopes = topics.0.lock();
            assert!(scopes[&me].bytes <= limits::TOPIC_BYTES_PER_SUBJECT);
            let sum: usize = scopes[&me].topics.values().map(|t| lock(&t.log).bytes).sum();
            assert_eq!(sum, scopes[&me].bytes);
        }
        assert_eq!(topics.broadcast(&me, "t0", &format!("{big}x")), Err(Refusal::PostTooLong(big.len() + 1)));
        drop(open);
        assert!(topics.0.lock().is_empty(), "a scope goes with its last subscriber");
    }

    /// The story: small posts in all topics made room for a large one, one post at a time, and for each the largest topic
    /// was looked for anew, for a tenth of a second, while every subject waited for the lock.
    #[test]
    fn room_for_a_post_costs_a_bounded_look_and_says_so() {
        let (topics, me) = (Topics::default(), Subject::everyone());
        let names: Vec<String> = (0..limits::TOPICS_PER_SUBJECT).map(|i| format!("t{i}")).collect();
        let open: Vec<_> = names.iter().map(|name| topics.subscribe(&me, name).unwrap()).collect();
        let small =
            "x".repeat(limits::TOPIC_BYTES_PER_SUBJECT / limits::TOPICS_PER_SUBJECT / limits::TOPIC_POSTS);
        for name in &names {
            for _ in 0..limits::TOPIC_POSTS {
                assert_eq!(topics.broadcast(&me, name, &small), Ok(Work { reached: 1, looked_at: 0 }));
            }
        }
        let work = topics.broadcast(&me, "t0", &"x".repeat(limits::MESSAGE_BYTES)).unwrap();
        let each = limits::TOPIC_BYTES_PER_SUBJECT / limits::TOPICS_PER_SUBJECT;
        let drained = limits::MESSAGE_BYTES.div_ceil(each) + 1;
        assert!((1..=drained * names.len()).contains(&work.looked_at), "{work:?}");
        drop(open);
    }

    #[test]
    fn unsubscribing_wakes_and_ends_and_frees() {
        let (topics, me) = (Topics::default(), Subject::everyone());
        let subscription = topics.subscribe(&me, "t").unwrap();
        topics.broadcast(&me, "t", "unread").unwrap();
        let other = topics.subscribe(&me, "u").unwrap();
        block_on(smol::future::zip(other.wait(), async { other.unsubscribe() }));
        assert_eq!(other.take(), None);
        subscription.unsubscribe();
        subscription.unsubscribe();
        assert_eq!(subscription.take(), None);
        assert_eq!(topics.broadcast(&me, "t", "to nobody").map(|work| work.reached), Ok(0));
        assert!(topics.0.lock().is_empty());
    }

    /// The story: a guest kept a pollable of each subscription that it gave up, and with it all posts of a topic that
    /// counted no more.
    #[test]
    fn a_topic_without_subscribers_keeps_no_post_whoever_keeps_a_subscription() {
        let (topics, me) = (Topics::default(), Subject::everyone());
        let kept = [0, 1].map(|_| topics.subscribe(&me, "t").unwrap());
        let post = "x".repeat(limits::MESSAGE_BYTES);
        topics.broadcast(&me, "t", &post).unwrap();
        let topic = kept[0].topic.clone();
        let posts = || {
            let log = lock(&topic.log);
            (log.posts.capacity() > 0, log.bytes)
        };
        kept[0].unsubscribe();
        assert_eq!(posts(), (true, post.len()), "the other may still read it");
        kept[1].unsubscribe();
        assert_eq!(posts(), (false, 0));
        // As before: it is ready, and yields nothing, whatever comes under the name.
        let next = topics.subscribe(&me, "t").unwrap();
        topics.broadcast(&me, "t", "another").unwrap();
        for kept in kept {
            kept.unsubscribe();
            block_on(kept.wait());
            assert_eq!((kept.take(), kept.dropped()), (None, 0));
        }
        assert_eq!(next.take().as_deref(), Some("another"));
        assert_eq!(topics.0.lock()[&me].bytes, "another".len());
    }

    #[test]
    fn a_topic_too_many_is_refused_with_the_bound() {
        let (topics, me) = (Topics::default(), Subject::everyone());
        let open: Vec<_> =
            (0..limits::TOPICS_PER_SUBJECT).map(|i| topics.subscribe(&me, &i.to_string()).unwrap()).collect();
        let refused = topics.subscribe(&me, "one more").err().unwrap();
        assert!(refused.to_string().contains(&limits::TOPICS_PER_SUBJECT.to_string()));
        assert!(topics.subscribe(&Subject::new("other"), "one more").is_ok());
        drop(open);
        assert!(topics.subscribe(&me, "one more").is_ok());
    }

    /// A subscriber that reads, on a task of its own; what it heard.
    struct Reader {
        subscription: Arc<Subscription>,
        /// The number of the first post that it must hear.
        from: u64,
        /// The number of the next.
        next: Arc<AtomicU64>,
        task: smol::Task<()>,
    }

    impl Reader {
        fn new(topics: &Topics, me: &Subject, from: u64, executor: &smol::Executor<'static>) -> Reader {
            let subscription = Arc::new(topics.subscribe(me, "t").expect("room"));
            let next = Arc::new(AtomicU64::new(from));
            let (heard, reading) = (next.clone(), subscription.clone());
            let task = executor.spawn(async move {
                loop {
                    reading.wait().await;
                    let Some(post) = reading.take() else { return }; // unsubscribed
                    let number = number_of(&post);
                    assert_eq!(heard.load(Ordering::Relaxed), number, "in order, each once");
                    heard.store(number + 1, Ordering::Relaxed);
                }
            });
            Reader { subscription, from, next, task }
        }

        fn is_at(&self, number: u64) -> bool {
            self.next.load(Ordering::Relaxed) == number || self.task.is_finished()
        }

        /// Unsubscribes, which wakes it; it has heard all from its first to this.
        async fn leave(self, end: u64) {
            self.subscription.unsubscribe();
            self.task.await;
            assert_eq!(self.next.load(Ordering::Relaxed), end, "from {} on", self.from);
            assert_eq!(self.subscription.dropped(), 0);
        }
    }

    /// A post is its number, and spaces that make it long.
    fn number_of(post: &str) -> u64 {
        let number = post.split(' ').next();
        number.and_then(|number| number.parse().ok()).expect("a number")
    }

    /// The posts that a topic still has after these: as many of the last as fit.
    fn remembered(lengths: &[usize]) -> usize {
        let mut bytes = 0;
        let fits = |length: &&usize| {
            bytes += **length;
            bytes <= limits::TOPIC_BYTES
        };
        lengths.iter().rev().take(limits::TOPIC_POSTS).take_while(fits).count()
    }

    /// 800 that read, on several threads, and 200 that never do; all along some come and some go.
    #[test]
    fn a_slow_subscriber_among_a_thousand_delays_nobody_and_costs_nobody_a_post() {
        const SEED: u64 = 5;
        println!("seed {SEED}");
        let mut random = crate::model::toy::Random::new(SEED);
        let (topics, me) = (Topics::default(), Subject::new("a"));
        let executor = Arc::new(smol::Executor::new());
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (executor, stopped) = (executor.clone(), stopped.clone());
                std::thread::spawn(move || {
                    let _closed = block_on(executor.run(stopped.recv()));
                })
            })
            .collect();
        let mut readers: Vec<Reader> = (0..800).map(|_| Reader::new(&topics, &me, 0, &executor)).collect();
        let slow: Vec<Subscription> = (0..200).map(|_| topics.subscribe(&me, "t").expect("room")).collect();
        let (mut lengths, mut lost_by_leavers) = (Vec::<usize>::new(), 0);
        while lengths.len() < 2000 {
            // As many posts at once as the topic remembers: more would cost those that read posts too.
            let (many, mut bytes) = (1 + random.below(limits::TOPIC_POSTS), 0);
            for _ in 0..many {
                let length = [8, 8, 8, 2000, limits::MESSAGE_BYTES / 3][random.below(5)];
                bytes += 8 + length;
                if bytes > limits::TOPIC_BYTES {
                    break;
                }
                let post = format!("{}{}", lengths.len(), " ".repeat(length));
                assert_eq!(
                    topics.broadcast(&me, "t", &post).map(|work| work.reached),
                    Ok(readers.len() + slow.len())
                );
                lengths.push(post.len());
                let scopes = topics.0.lock();
                let log = lock(&scopes[&me].topics["t"].log);
                assert_eq!(log.posts.len(), remembered(&lengths));
                assert_eq!(log.bytes, log.posts.iter().map(|post| post.len()).sum::<usize>());
                assert_eq!((log.bytes, scopes[&me].topics.len()), (scopes[&me].bytes, 1));
            }
            let end = lengths.len() as u64;
            block_on(async {
                while !readers.iter().all(|reader| reader.is_at(end)) {
                    smol::future::yield_now().await;
                }
                for _ in 0..random.below(20) {
                    readers.swap_remove(random.below(readers.len())).leave(end).await;
                }
            });
            readers.extend((0..random.below(20)).map(|_| Reader::new(&topics, &me, end, &executor)));
            // One that never reads and goes has lost nothing that was counted: it never asked.
            if random.below(4) == 0 {
                let passing = topics.subscribe(&me, "t").expect("room");
                let reached = topics.broadcast(&me, "t", &format!("{end}"));
                assert_eq!(reached.map(|work| work.reached), Ok(readers.len() + slow.len() + 1));
                lengths.push(end.to_string().len());
                block_on(async {
                    while !readers.iter().all(|reader| reader.is_at(end + 1)) {
                        smol::future::yield_now().await;
                    }
                });
                lost_by_leavers += passing.dropped();
            }
        }
        let (end, kept) = (lengths.len() as u64, remembered(&lengths) as u64);
        for subscription in &slow {
            let heard: Vec<u64> =
                std::iter::from_fn(|| subscription.take()).map(|post| number_of(&post)).collect();
            assert_eq!(heard, (end - kept..end).collect::<Vec<u64>>(), "the oldest are lost, and only they");
            assert_eq!(subscription.dropped(), end - kept);
        }
        assert_eq!((topics.dropped(), lost_by_leavers), (slow.len() as u64 * (end - kept), 0));
        block_on(async {
            for reader in readers {
                reader.leave(end).await;
            }
        });
        drop(slow);
        assert!(topics.0.lock().is_empty());
        drop(stop);
        threads.into_iter().for_each(|thread| thread.join().expect("it ran tasks"));
    }
}
