//! Passes and pages, against a running engine whose backend parrots.

use super::{COMMON, FORWARD, POLL, held, queue};
use crate::backend::cpu::{Cpu, CpuOptions, KvFormat};
use crate::backend::crew::Crew;
use crate::engine::operation::Reply;
use crate::host::Trap;
use crate::host::bed::{Bed, House, PAGES, float, number};
use crate::identity::Subject;
use crate::model::toy::Toy;
use std::ops::Range;
use wasmi::Val;

const PAGE_TYPE: u64 = 0;

fn allocate(bed: &mut Bed, queue: &[Val], count: u64) -> Vec<u32> {
    let at =
        bed.call(COMMON, "allocate-resources", &[queue, &number(PAGE_TYPE), &number(count)]).expect("room");
    bed.list_at(at)
}

/// A pass over `pages` that adds `rows` tokens, ending `last` slots into the last page.
fn pass(bed: &mut Bed, queue: &[Val], pages: &[u32], last: u64, rows: u32) -> [Val; 1] {
    let pass = number(bed.call(FORWARD, "create-forward-pass", &[queue]).unwrap());
    set_up(bed, &pass, pages, last, rows);
    pass
}

fn set_up(bed: &mut Bed, pass: &[Val], pages: &[u32], last: u64, rows: u32) {
    set_up_rows(bed, pass, pages, last, 0..rows);
}

fn set_up_rows(bed: &mut Bed, pass: &[Val], pages: &[u32], last: u64, rows: Range<u32>) {
    let numbers: Vec<u32> = rows.collect();
    let (tokens, positions) = (bed.list(&numbers), bed.list(&numbers));
    bed.call(FORWARD, "input-tokens", &[pass, &tokens, &positions]).unwrap();
    let pages = bed.list(pages);
    bed.call(FORWARD, "kv-cache", &[pass, &pages, &number(last)]).unwrap();
}

/// As the SDK does: execute, and the handle of the result if there is one.
fn execute(bed: &mut Bed, pass: &[Val]) -> Result<Option<[Val; 1]>, Trap> {
    let at = bed.call(FORWARD, "[method]forward-pass.execute", &[pass])?;
    Ok((bed.u32_at(at) & 0xff == 1).then(|| number(bed.u32_at(at + 4).into())))
}

fn wait(bed: &mut Bed, result: &[Val]) {
    let pollable = number(bed.call(FORWARD, "[method]forward-pass-result.pollable", &[result]).unwrap());
    let Val::I32(handle) = pollable[0] else { panic!("a handle") };
    let one = bed.list(&[handle as u32]);
    let at = bed.call(POLL, "poll", &[&one]).unwrap();
    assert_eq!(bed.list_at(at), [0]);
}

fn tokens(bed: &mut Bed, result: &[Val]) -> Option<Vec<u32>> {
    let at = bed.call(FORWARD, "[method]forward-pass-result.get-tokens", &[result]).unwrap();
    (bed.u32_at(at) & 0xff == 1).then(|| bed.list_at(at + 4))
}

#[test]
fn a_pass_answers_tokens_and_distributions_in_the_order_of_the_calls() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pages = allocate(&mut bed, &queue, 2);
    let pass = pass(&mut bed, &queue, &pages, 2, 6);
    let (two, last) = (bed.list(&[3, 1]), bed.list(&[5]));
    bed.call(FORWARD, "output-tokens", &[&pass, &two, &float(0.0)]).unwrap();
    let top_two = [Val::I32(1), Val::I32(2)];
    bed.call(FORWARD, "output-distributions", &[&pass, &last, &float(1.0), &top_two]).unwrap();
    bed.call(FORWARD, "output-tokens-top-p", &[&pass, &last, &float(0.6), &float(0.9)]).unwrap();
    let result = execute(&mut bed, &pass).unwrap().expect("outputs were asked for");
    wait(&mut bed, &result);

    let at = bed.call(FORWARD, "[method]forward-pass-result.get-distributions", &[&result]).unwrap();
    assert_eq!((bed.u32_at(at) & 0xff, bed.u32_at(at + 8)), (1, 1));
    let distribution = bed.u32_at(at + 4).into();
    assert_eq!(bed.list_at(distribution), [0, 1]);
    assert_eq!(bed.list_at(distribution + 8), [0.5f32.to_bits(); 2]);
    assert_eq!(tokens(&mut bed, &result), Some(vec![3, 1, 5]));
    assert_eq!(tokens(&mut bed, &result), Some(vec![3, 1, 5]), "a result may be read again");
}

/// The story: a guest took a pollable of each result and dropped the result. The charge went with that, and the
/// distributions stayed, as many as there may be handles.
#[test]
fn what_a_pass_yields_counts_until_nobody_has_it() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pages = allocate(&mut bed, &queue, 1);
    let pass = pass(&mut bed, &queue, &pages, 1, 1);
    let first = bed.list(&[0]);
    bed.call(FORWARD, "output-distributions", &[&pass, &first, &float(1.0), &[Val::I32(1), Val::I32(300)]])
        .unwrap();
    let result = execute(&mut bed, &pass).unwrap().expect("outputs were asked for");
    wait(&mut bed, &result); // takes a pollable of its own
    let pollable = number(bed.call(FORWARD, "[method]forward-pass-result.pollable", &[&result]).unwrap());
    let bytes = held(&mut bed);
    assert!(bytes >= 8 * 300, "{bytes}");
    let [Val::I32(result), Val::I32(pollable)] = [result[0].clone(), pollable[0].clone()] else {
        panic!("handles")
    };
    bed.drop_handle(FORWARD, "forward-pass-result", result as u32).unwrap();
    assert_eq!(held(&mut bed), bytes, "the pollables know the reply");
    bed.drop_handle(POLL, "pollable", pollable as u32).unwrap();
    assert_eq!(held(&mut bed), bytes, "one is left");
    bed.drop_handle(POLL, "pollable", pollable as u32 - 1).unwrap();
    assert_eq!(held(&mut bed), 0);
}

/// What a guest dropped before the pass ran comes to be all the same.
#[test]
fn what_a_reply_carries_counts_until_the_last_who_has_it_lets_go() {
    let mut bed = Bed::new();
    let mut charge = bed.cx().held.nothing();
    charge.set(1000).unwrap();
    let reply: Reply<bool> = Reply::carrying(charge);
    let of_the_engine = reply.clone();
    drop(reply);
    assert_eq!(held(&mut bed), 1000);
    of_the_engine.set_blocking(true).unwrap();
    drop(of_the_engine);
    assert_eq!(held(&mut bed), 0);
}

#[test]
fn execute_takes_what_was_set_and_the_handle_can_be_set_up_again() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pages = allocate(&mut bed, &queue, 1);
    let pass = pass(&mut bed, &queue, &pages, 2, 2);
    assert!(held(&mut bed) > 0);
    assert!(execute(&mut bed, &pass).unwrap().is_none(), "no outputs, no result");
    assert_eq!(held(&mut bed), 0, "what was submitted is the engine's");
    set_up(&mut bed, &pass, &pages, 3, 1);
    let first = bed.list(&[0]);
    bed.call(FORWARD, "output-tokens", &[&pass, &first, &float(0.0)]).unwrap();
    let result = execute(&mut bed, &pass).unwrap().expect("an output was asked for");
    wait(&mut bed, &result);
    assert_eq!(tokens(&mut bed, &result), Some(vec![0]));
    let Err(trap) = execute(&mut bed, &pass) else { panic!("nothing is set") };
    let sentence = trap.to_string();
    assert!(sentence.contains("no input tokens"), "{sentence}");
}

#[test]
fn a_pass_runs_though_its_queue_was_dropped() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pages = allocate(&mut bed, &queue, 1);
    let pass = pass(&mut bed, &queue, &pages, 1, 1);
    let Val::I32(handle) = queue[0] else { panic!("a handle") };
    bed.cx().table.take::<crate::host::common::Queue>(handle as u32).unwrap();
    let first = bed.list(&[0]);
    bed.call(FORWARD, "output-tokens", &[&pass, &first, &float(0.0)]).unwrap();
    let result = execute(&mut bed, &pass).unwrap().expect("an output was asked for");
    wait(&mut bed, &result);
    assert_eq!(tokens(&mut bed, &result), Some(vec![0]));
}

#[test]
fn a_queue_answers_when_all_before_is_done() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    assert_eq!(bed.call(COMMON, "[method]queue.get-service-id", &[&queue]), Ok(0));
    bed.call(COMMON, "[method]queue.set-priority", &[&queue, &number(2)]).unwrap();
    let result = number(bed.call(COMMON, "[method]queue.synchronize", &[&queue]).unwrap());
    let pollable = number(bed.call(COMMON, "[method]synchronization-result.pollable", &[&result]).unwrap());
    bed.call(POLL, "[method]pollable.block", &[&pollable]).unwrap();
    let at = bed.call(COMMON, "[method]synchronization-result.get", &[&result]).unwrap();
    assert_eq!(bed.u32_at(at) & 0xffff, 0x0101, "some(true)");
    for (query, answer) in [("ping", "pong"), ("pong", "unknown query")] {
        let text = bed.text(query);
        let result = number(bed.call(COMMON, "[method]queue.debug-query", &[&queue, &text]).unwrap());
        let pollable = number(bed.call(COMMON, "[method]debug-query-result.pollable", &[&result]).unwrap());
        bed.call(POLL, "[method]pollable.block", &[&pollable]).unwrap();
        let at = bed.call(COMMON, "[method]debug-query-result.get", &[&result]).unwrap();
        assert_eq!(bed.text_at(at + 4), answer);
    }
    let sentence = bed.sentence(COMMON, "[method]queue.set-priority", &[&queue, &number(3)]);
    assert!(sentence.contains('3'), "{sentence}");
}

#[test]
fn exports_travel_within_a_subject() {
    let house = House::new();
    let (mine, other) = (Subject::new("me"), Subject::new("other"));
    let (mut a, mut b, mut c) = (Bed::of(&house, &mine), Bed::of(&house, &mine), Bed::of(&house, &other));
    let (qa, qb, qc) = (queue(&mut a), queue(&mut b), queue(&mut c));
    let pages = allocate(&mut a, &qa, 2);
    let (list, name) = (a.list(&pages), a.text("prefix"));
    a.call(COMMON, "export-resources", &[&qa, &number(PAGE_TYPE), &list, &name]).unwrap();
    let at = b.call(COMMON, "get-all-exported-resources", &[&qb, &number(PAGE_TYPE)]).unwrap();
    let entry = b.u32_at(at).into();
    assert_eq!((b.u32_at(at + 4), b.text_at(entry).as_str(), b.u32_at(entry + 8)), (1, "prefix", 2));
    let name = b.text("prefix");
    let at = b.call(COMMON, "import-resources", &[&qb, &number(PAGE_TYPE), &name]).unwrap();
    assert_eq!(b.list_at(at).len(), 2);

    let at = c.call(COMMON, "get-all-exported-resources", &[&qc, &number(PAGE_TYPE)]).unwrap();
    assert_eq!(c.u32_at(at + 4), 0);
    let name = c.text("prefix");
    let sentence = c.sentence(COMMON, "import-resources", &[&qc, &number(PAGE_TYPE), &name]);
    assert!(sentence.contains("prefix"), "{sentence}");

    let (list, name) = (a.list(&pages), a.text("prefix"));
    let sentence = a.sentence(COMMON, "export-resources", &[&qa, &number(PAGE_TYPE), &list, &name]);
    assert!(sentence.contains("taken"), "{sentence}");
    let name = b.text("prefix");
    b.call(COMMON, "release-exported-resources", &[&qb, &number(PAGE_TYPE), &name]).unwrap();
    let name = b.text(&"n".repeat(crate::limits::EXPORT_NAME_BYTES + 1));
    let sentence = b.sentence(COMMON, "import-resources", &[&qb, &number(PAGE_TYPE), &name]);
    assert!(sentence.contains("bytes"), "{sentence}");
}

#[test]
fn more_pages_than_there_can_be_is_the_one_oom_that_has_a_name() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    assert!(allocate(&mut bed, &queue, 0).is_empty());
    let too_many = number(u64::from(PAGES) + 1);
    match bed.call(COMMON, "allocate-resources", &[&queue, &number(PAGE_TYPE), &too_many]) {
        Err(Trap::Exception(text)) => assert!(text.starts_with("OOM unrecoverable: "), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_page_that_is_not_held_ends_the_guest_at_that_call_and_is_named() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pages = allocate(&mut bed, &queue, 2);
    let list = bed.list(&pages[1..]);
    bed.call(COMMON, "deallocate-resources", &[&queue, &number(PAGE_TYPE), &list]).unwrap();
    let list = bed.list(&pages[1..]);
    let again = bed.sentence(COMMON, "deallocate-resources", &[&queue, &number(PAGE_TYPE), &list]);
    let pass = pass(&mut bed, &queue, &pages, 1, 2);
    let run = bed.sentence(FORWARD, "[method]forward-pass.execute", &[&pass]);
    let (list, name) = (bed.list(&pages), bed.text("x"));
    let export = bed.sentence(COMMON, "export-resources", &[&queue, &number(PAGE_TYPE), &list, &name]);
    for sentence in [again, run, export] {
        let named = format!("names page {}, which", pages[1]);
        assert!(sentence.contains("ptrs") && sentence.contains(&named), "{sentence}");
    }
    assert!(bed.house.notices.is_empty(), "the engine saw none of it");
}

#[test]
fn a_pass_hides_what_its_mask_says_and_draws_in_every_way() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pages = allocate(&mut bed, &queue, 1);
    let pass = pass(&mut bed, &queue, &pages, 3, 3);
    // The second row does not see the first.
    let runs = bed.lists(&[vec![1], vec![0, 1, 1], vec![3]]);
    bed.call(FORWARD, "attention-mask", &[&pass, &runs]).unwrap();
    let (one, half) = (float(1.0), float(0.5));
    for (name, numbers) in [
        ("output-tokens-top-k", vec![&one[..], &[Val::I32(3)]]),
        ("output-tokens-top-p", vec![&one, &half]),
        ("output-tokens-min-p", vec![&one, &half]),
        ("output-tokens-top-k-top-p", vec![&one, &[Val::I32(3)], &half]),
    ] {
        let last = bed.list(&[2]);
        let arguments = [&[&pass[..], &last[..]], &numbers[..]].concat();
        bed.call(FORWARD, name, &arguments).unwrap_or_else(|trap| panic!("{name}: {trap}"));
    }
    let result = execute(&mut bed, &pass).unwrap().expect("outputs were asked for");
    wait(&mut bed, &result);
    assert_eq!(tokens(&mut bed, &result), Some(vec![2; 4]));

    set_up(&mut bed, &pass, &pages, 3, 2);
    let runs = bed.lists(&[vec![2], vec![2]]);
    bed.call(FORWARD, "attention-mask", &[&pass, &runs]).unwrap();
    let sentence = bed.sentence(FORWARD, "[method]forward-pass.execute", &[&pass]);
    assert!(sentence.contains("attention mask row 1"), "{sentence}");
}

#[test]
fn hidden_states_are_kept_and_come_in_again_in_the_order_of_the_queue() {
    let mut bed = Bed::new();
    let queue = queue(&mut bed);
    let pages = allocate(&mut bed, &queue, 1);
    let at = bed.call(COMMON, "allocate-resources", &[&queue, &number(1), &number(2)]).expect("room");
    let embeds = bed.list_at(at);

    // Nothing is in the second one: reading it ends the guest, so this comes last.
    let reading = |bed: &mut Bed, embed: u32, last: u64| {
        let pass = number(bed.call(FORWARD, "create-forward-pass", &[&queue]).unwrap());
        let (ids, positions) = (bed.list(&[embed]), bed.list(&[2]));
        bed.call(FORWARD, "input-embeddings", &[&pass, &ids, &positions]).unwrap();
        let page = bed.list(&pages);
        bed.call(FORWARD, "kv-cache", &[&pass, &page, &number(last)]).unwrap();
        let first = bed.list(&[0]);
        bed.call(FORWARD, "output-tokens", &[&pass, &first, &float(0.0)]).unwrap();
        pass
    };
    let store = pass(&mut bed, &queue, &pages, 2, 2);
    let (ids, rows) = (bed.list(&embeds[..1]), bed.list(&[1]));
    bed.call(FORWARD, "output-embeddings", &[&store, &ids, &rows]).unwrap();
    assert!(execute(&mut bed, &store).unwrap().is_none(), "a pass that only stores has no result");
    // Submitted before the first has run: the queue keeps the order.
    let read = reading(&mut bed, embeds[0], 3);
    let result = execute(&mut bed, &read).unwrap().expect("a token was asked for");
    wait(&mut bed, &result);
    assert_eq!(tokens(&mut bed, &result), Some(vec![0]));

    let empty = reading(&mut bed, embeds[1], 4);
    assert!(execute(&mut bed, &empty).unwrap().is_some(), "the engine sees it later");
    let notice = smol::block_on(bed.house.notices.recv()).expect("the engine tells");
    assert!(format!("{notice:?}").contains(&format!("nothing is in embed {}", embeds[1])), "{notice:?}");
}

/// The plain path: exact weights, f32 keys and values. Whoever recomputes is of another subject, which finds nothing.
#[test]
fn an_imported_prefix_gives_what_recomputing_gives() {
    let options = CpuOptions {
        pages: Some(PAGES),
        page_size: 4,
        embeds: 1,
        batch_tokens: 16,
        kv: KvFormat::F32,
        exact: true,
    };
    let model = Toy::default().model();
    let cpu = Cpu::load(model.clone(), options, Crew::threads(1)).expect("a toy is small");
    let house = House::over(model, Box::new(cpu), 64, |why| panic!("{why}"));
    let (mine, other) = (Subject::new("me"), Subject::new("other"));
    let (mut a, mut b, mut c) = (Bed::of(&house, &mine), Bed::of(&house, &mine), Bed::of(&house, &other));
    let (qa, qb, qc) = (queue(&mut a), queue(&mut b), queue(&mut c));

    let pages = allocate(&mut a, &qa, 2);
    let prefix = pass(&mut a, &qa, &pages, 2, 6);
    assert!(execute(&mut a, &prefix).unwrap().is_none());
    let (list, name) = (a.list(&pages), a.text("prefix"));
    a.call(COMMON, "export-resources", &[&qa, &number(PAGE_TYPE), &list, &name]).unwrap();

    let name = b.text("prefix");
    let at = b.call(COMMON, "import-resources", &[&qb, &number(PAGE_TYPE), &name]).unwrap();
    let mut imported = b.list_at(at);
    imported.extend(allocate(&mut b, &qb, 1));
    let best = likeliest(&mut b, &qb, &imported, 6..10);
    let recomputed = allocate(&mut c, &qc, 3);
    let again = likeliest(&mut c, &qc, &recomputed, 0..10);
    assert_eq!(best.len(), 32);
    for ((id, p), (id_again, p_again)) in best.iter().zip(&again) {
        assert!(id == id_again && (p - p_again).abs() <= 1e-4, "{id}: {p}, {id_again}: {p_again}");
    }
}

/// The 32 likeliest tokens after these rows, with their probabilities; the rows end two slots into the last page.
fn likeliest(bed: &mut Bed, queue: &[Val], pages: &[u32], rows: Range<u32>) -> Vec<(u32, f32)> {
    let pass = number(bed.call(FORWARD, "create-forward-pass", &[queue]).unwrap());
    set_up_rows(bed, &pass, pages, 2, rows.clone());
    let (last, top) = (bed.list(&[rows.end - rows.start - 1]), [Val::I32(1), Val::I32(32)]);
    bed.call(FORWARD, "output-distributions", &[&pass, &last, &float(1.0), &top]).unwrap();
    let result = execute(bed, &pass).unwrap().expect("an output was asked for");
    wait(bed, &result);
    let at = bed.call(FORWARD, "[method]forward-pass-result.get-distributions", &[&result]).unwrap();
    let distribution = bed.u32_at(at + 4).into();
    let probabilities = bed.list_at(distribution + 8).into_iter().map(f32::from_bits);
    bed.list_at(distribution).into_iter().zip(probabilities).collect()
}
