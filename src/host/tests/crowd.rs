//! Topics with as many guests as a box has, through the calls that guests make.

use super::{MESSAGE, POLL};
use crate::host::bed::{Bed, House, number};
use crate::identity::Subject;
use crate::limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use wasmi::Val;

/// Guests that the test plays, each with so many subscriptions; [`WAITING`] more run on threads of their own.
const PLAYED: usize = 246;
const EACH: usize = 4;
const WAITING: usize = 8;
const POSTS: usize = 300;

const _: () = assert!(PLAYED + WAITING < limits::INSTANCES && PLAYED * EACH + WAITING >= 990);

fn subscribe(bed: &mut Bed) -> [Val; 1] {
    let topic = bed.text("crowd");
    number(bed.call(MESSAGE, "subscribe", &[&topic]).unwrap())
}

fn get(bed: &mut Bed, subscription: &[Val]) -> Option<String> {
    let at = bed.call(MESSAGE, "[method]subscription.get", &[subscription]).unwrap();
    let post = (bed.u32_at(at) & 0xff == 1).then(|| bed.text_at(at + 4));
    bed.forget_answers();
    post
}

fn post(bed: &mut Bed, number: usize) {
    let (topic, text) = (bed.text("crowd"), bed.text(&number.to_string()));
    bed.call(MESSAGE, "broadcast", &[&topic, &text]).unwrap();
}

/// Waits in `pollable.block` as a program does, and reads, until it has heard the last post.
fn wait_and_read(mut bed: Bed, subscription: [Val; 1], heard: &AtomicUsize) {
    let pollable = bed.call(MESSAGE, "[method]subscription.pollable", &[&subscription]).unwrap();
    while heard.load(Ordering::Relaxed) < POSTS {
        bed.call(POLL, "[method]pollable.block", &[&number(pollable)]).unwrap();
        let post = get(&mut bed, &subscription).expect("it was told so");
        let expected = heard.fetch_add(1, Ordering::Relaxed);
        assert_eq!(post, expected.to_string());
    }
}

/// A guest's subscription: the next post that it must hear, and whether it is ever read.
struct Place {
    subscription: [Val; 1],
    next: usize,
    reads: bool,
    open: bool,
}

#[test]
fn a_thousand_subscriptions_of_all_guests_hear_every_post_beside_some_that_never_read() {
    let (house, me) = (House::new(), Subject::new("me"));
    let waiting: Vec<_> = (0..WAITING)
        .map(|_| {
            let mut bed = Bed::of(&house, &me);
            let subscription = subscribe(&mut bed);
            let heard = Arc::new(AtomicUsize::new(0));
            let its = heard.clone();
            (heard, std::thread::spawn(move || wait_and_read(bed, subscription, &its)))
        })
        .collect();
    let mut poster = Bed::of(&house, &me);
    let mut guests: Vec<(Bed, Vec<Place>)> = (0..PLAYED)
        .map(|guest| {
            let mut bed = Bed::of(&house, &me);
            let place =
                |_| Place { subscription: subscribe(&mut bed), next: 0, reads: guest % 5 > 0, open: true };
            let places = (0..EACH).map(place).collect();
            (bed, places)
        })
        .collect();
    for number in 0..POSTS {
        post(&mut poster, number);
        for (guest, (bed, places)) in guests.iter_mut().enumerate() {
            // Some read each post as it comes, some only now and then, at the latest when the topic is full.
            let now = number % [1, 7, limits::TOPIC_POSTS][guest % 3] == 0 || number + 1 == POSTS;
            for place in places.iter_mut().filter(|place| place.reads && place.open && now) {
                while let Some(post) = get(bed, &place.subscription) {
                    assert_eq!(post, place.next.to_string(), "guest {guest}");
                    place.next += 1;
                }
                assert_eq!(place.next, number + 1, "guest {guest}");
            }
            // One unsubscribes, one drops its handle, one comes back: each a while after another.
            if number == guest + 20 && places[0].reads {
                let handle = places[0].subscription.clone();
                bed.call(MESSAGE, "[method]subscription.unsubscribe", &[&handle]).unwrap();
                assert_eq!(get(bed, &handle), None);
                places[0].open = false;
                let handle = places[1].subscription[0].i32().expect("a handle") as u32;
                bed.drop_handle(MESSAGE, "subscription", handle).unwrap();
                places[1].open = false;
            }
            if number == guest + 30 && places[0].reads {
                let subscription = subscribe(bed);
                places.push(Place { subscription, next: number + 1, reads: true, open: true });
            }
        }
        // Those that wait hear as fast as their threads run; the topic remembers for them.
        let behind = |heard: &AtomicUsize| heard.load(Ordering::Relaxed) + limits::TOPIC_POSTS <= number + 1;
        while waiting.iter().any(|(heard, thread)| behind(heard) && !thread.is_finished()) {
            std::thread::yield_now();
        }
    }
    for (_, thread) in waiting {
        thread.join().expect("it heard everything");
    }
    // Who never read has the last posts, and nothing in between is missing.
    let mut lost = 0;
    for (bed, places) in guests.iter_mut() {
        for place in places.iter().filter(|place| !place.reads) {
            let left: Vec<String> = std::iter::from_fn(|| get(bed, &place.subscription)).collect();
            let expected: Vec<String> = (POSTS - limits::TOPIC_POSTS..POSTS).map(|n| n.to_string()).collect();
            assert_eq!(left, expected);
            lost += POSTS - limits::TOPIC_POSTS;
        }
    }
    assert_eq!(house.exchange.topics.dropped(), lost as u64);
}
