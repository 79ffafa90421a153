//! The draws, the same on every backend.
//!
//! Owns: how a row of logits becomes a token or a distribution, and the generator that the draws come from. Never:
//! where the logits come from, nor any state: the same key and logits give the same token, on any backend, in any
//! batch.
//!
//! How the bits stay the same. A token's weight is `exp((logit - largest) / T)`: one f32 subtraction, one f32
//! division, and [`exp_fixed`], fixed steps that end in an integer, 2^42 for the largest logit. Everything after is
//! integer arithmetic: sums of weights (associative: any order, any number of threads), limits, the draw. *Order* is
//! by logit, descending, ties to the lower id. Which tokens are *kept* follows from that order and from sums. The
//! draw walks the kept tokens by ascending id. A token below 2^-42 of the largest has no weight.
//!
//! Odd inputs have an answer: a NaN logit counts as minus infinity; a temperature that is not above 0 (NaN too) is
//! greedy; a row without any logit above minus infinity gives token 0.

use super::exp::{FIXED_BITS, exp_fixed};
use super::{DrawKey, Produced, Sampler, TokenId};

/// Logits of which [`Logits::maxima`] has one largest.
pub const LOGITS_PER_MAXIMUM: usize = 256;

/// A row of logits.
#[derive(Clone, Copy)]
pub struct Logits<'a> {
    pub all: &'a [f32], // [vocab]
    /// The largest of each 256 that is not NaN, minus infinity if there is none: what made the logits has it in passing,
    /// and most of a vocabulary is never looked at again.
    pub maxima: &'a [f32], // [vocab / 256, rounded up]
}

impl Logits<'_> {
    /// The stretches that the maxima stand for, each with its first id and its largest logit.
    #[inline(always)]
    fn stretches(&self) -> impl Iterator<Item = (usize, f32, &[f32])> {
        let parts = self.all.chunks(LOGITS_PER_MAXIMUM).zip(self.maxima);
        parts.enumerate().map(|(i, (part, &largest))| (i * LOGITS_PER_MAXIMUM, largest, part))
    }
}

/// Room to sample rows of one vocabulary; nothing is remembered from row to row.
pub struct Sampling {
    sums: Vec<u64>,   // [vocab / 256] weights of a stretch together
    kept: Vec<u64>,   // [candidate], see `place`
    maxima: Vec<u64>, // [vocab / 256], places
}

impl Sampling {
    /// Room for rows of up to `vocab` logits.
    pub fn new(vocab: usize) -> Sampling {
        let stretches = vocab.div_ceil(LOGITS_PER_MAXIMUM);
        let (sums, maxima) = (Vec::with_capacity(stretches), Vec::with_capacity(stretches));
        Sampling { sums, kept: Vec::with_capacity(vocab), maxima }
    }

    /// Draws one token from `logits` ([vocab], at least one) as `sampler` says; `random` comes from [`random`].
    ///
    /// A `k` of 0 keeps all tokens, and so does a `p` of 1 or more (min-p: those that equal the largest). However
    /// small `k` and `p`, the best token is kept. Top-k comes before top-p, whose mass is then that of the k.
    #[inline(always)] // into what is compiled for the machine's vectors
    pub fn token(&mut self, logits: Logits, sampler: Sampler, random: u64) -> TokenId {
        let (temperature, k, p, min_p) = match sampler {
            Sampler::Multinomial { temperature } => (temperature, 0, 1.0, None),
            Sampler::TopK { temperature, k } => (temperature, k as usize, 1.0, None),
            Sampler::TopP { temperature, p } => (temperature, 0, p, None),
            Sampler::MinP { temperature, p } => (temperature, 0, 1.0, Some(p)),
            Sampler::TopKTopP { temperature, k, p } => (temperature, k as usize, p, None),
        };
        let scale = Scale::of(logits, temperature);
        if scale.greedy() {
            return scale.best;
        }
        let weigh = |id: usize| scale.weight(logits.all[id]);
        if (1..logits.all.len()).contains(&k) {
            self.keep_first(logits, k);
            if p < 1.0 {
                let total = self.kept.iter().map(|&place| weigh(id(place))).sum();
                keep_mass(&mut self.kept, portion(p, total), weigh);
            }
            return draw_kept(&mut self.kept, weigh, random);
        }
        let floor = min_p.map_or(0, |p| portion(p, 1 << FIXED_BITS));
        let total = self.weigh_stretches(logits, scale, floor);
        if p < 1.0 {
            self.keep_down_to(logits, scale, portion(p, total));
            return draw_kept(&mut self.kept, weigh, random);
        }
        // By ascending id: first the stretch, then the token in it.
        let mut left = share_of(total, random);
        let stretch = self.sums.iter().position(|&sum| {
            let here = left < sum;
            left -= if here { 0 } else { sum };
            here
        });
        let first = stretch.unwrap_or(0) * LOGITS_PER_MAXIMUM;
        let ids = first..logits.all.len().min(first + LOGITS_PER_MAXIMUM);
        let at = ids.clone().position(|id| {
            let weight = weigh(id);
            let weight = if weight < floor { 0 } else { weight };
            let here = left < weight;
            left -= if here { 0 } else { weight };
            here
        });
        TokenId((first + at.unwrap_or(0)) as u32) // always found: `left` is below the sum
    }

    /// The `top_k` most probable tokens (all, if there are fewer) with their probabilities in the whole of
    /// softmax(logits / temperature), by descending logit, ties by ascending id. At temperature 0 the first has
    /// probability 1 and the others 0.
    #[inline(always)]
    pub fn distribution(&mut self, logits: Logits, temperature: f32, top_k: u32) -> Produced {
        let scale = Scale::of(logits, temperature);
        self.keep_first(logits, top_k as usize);
        self.kept.sort_unstable();
        let ids: Vec<TokenId> = self.kept.iter().map(|&place| TokenId(id(place) as u32)).collect();
        let mut probs = vec![0.0; ids.len()];
        if !scale.greedy() {
            let total = self.weigh_stretches(logits, scale, 0);
            for (prob, id) in probs.iter_mut().zip(&ids) {
                *prob = (scale.weight(logits.all[id.0 as usize]) as f64 / total as f64) as f32;
            }
        } else if let Some(first) = probs.first_mut() {
            *first = 1.0;
        }
        Produced::Distribution { ids, probs }
    }

    /// Sums the weights of each stretch, and of all; one below `floor` counts as 0.
    #[inline(always)]
    fn weigh_stretches(&mut self, logits: Logits, scale: Scale, floor: u64) -> u64 {
        self.sums.clear();
        for (_, _, part) in logits.stretches() {
            let mut sum = 0;
            for &logit in part {
                let weight = scale.weight(logit);
                sum += if weight < floor { 0 } else { weight };
            }
            self.sums.push(sum);
        }
        self.sums.iter().sum()
    }

    /// Keeps all tokens whose logit is `least` or more, in any order.
    fn keep_from(&mut self, logits: Logits, least: f32) {
        let least = place(least, 0) >> 32;
        self.kept.clear();
        for (first, largest, part) in logits.stretches() {
            if place(largest, 0) >> 32 <= least {
                let places = part.iter().enumerate().map(|(i, &logit)| place(logit, first + i));
                self.kept.extend(places.filter(|place| place >> 32 <= least));
            }
        }
    }

    /// Keeps the first `k` tokens of the order, in any order.
    fn keep_first(&mut self, logits: Logits, k: usize) {
        // At least k logits reach the k-th of the maxima, so nothing below it is among the first k.
        let mut least = f32::NEG_INFINITY;
        if (1..=logits.maxima.len()).contains(&k) {
            self.maxima.clear();
            self.maxima.extend(logits.maxima.iter().enumerate().map(|(i, &largest)| place(largest, i)));
            let (_, &mut kth, _) = self.maxima.select_nth_unstable(k - 1);
            least = logits.maxima[id(kth)];
        }
        self.keep_from(logits, least);
        if 0 < k && k < self.kept.len() {
            self.kept.select_nth_unstable(k - 1);
        }
        self.kept.truncate(k);
    }

    /// Keeps the smallest start of the order that weighs at least `mass`.
    fn keep_down_to(&mut self, logits: Logits, scale: Scale, mass: u64) {
        let weigh = |place: u64| scale.weight(logits.all[id(place)]);
        // A little below the best first: what is kept is a start of the order, so if it weighs enough, the start sought
        // is in it. Below 32 temperatures nothing has weight.
        for below in [4.0, 8.0, 16.0, f32::INFINITY] {
            let least = scale.largest - below * scale.temperature;
            self.keep_from(logits, least);
            if self.kept.iter().map(|&place| weigh(place)).sum::<u64>() >= mass {
                break;
            }
        }
        keep_mass(&mut self.kept, mass, |id| scale.weight(logits.all[id]));
    }
}

/// What a row's weights are measured by.
#[derive(Clone, Copy)]
struct Scale {
    best: TokenId,
    largest: f32,
    temperature: f32,
}

impl Scale {
    fn of(logits: Logits, temperature: f32) -> Scale {
        let largest = |numbers: &[f32]| {
            let mut best = (0, f32::NEG_INFINITY);
            for (at, &number) in numbers.iter().enumerate() {
                if number > best.1 {
                    best = (at, number); // never for NaN; an equal one later does not displace
                }
            }
            best
        };
        let first = largest(logits.maxima).0 * LOGITS_PER_MAXIMUM;
        let end = logits.all.len().min(first + LOGITS_PER_MAXIMUM);
        let (at, logit) = largest(&logits.all[first..end]);
        let best = (first + at, logit);
        Scale { best: TokenId(best.0 as u32), largest: best.1.min(f32::MAX), temperature }
    }

    /// Whether the best token is the answer, whatever the sampler.
    fn greedy(&self) -> bool {
        self.temperature.is_nan() || self.temperature <= 0.0 || self.largest == f32::NEG_INFINITY
    }

    /// 2^42 for the largest logit, 0 for NaN and minus infinity.
    #[inline(always)]
    fn weight(&self, logit: f32) -> u64 {
        let logit = if logit > f32::MAX { f32::MAX } else { logit };
        exp_fixed((logit - self.largest) / self.temperature)
    }
}

/// The share `p` of `whole` (at most 2^62), rounded up: the exact product with the f32, at least 1, at most `whole`.
fn portion(p: f32, whole: u64) -> u64 {
    let p = (f64::from(p).clamp(0.0, 1.0) * 2f64.powi(64)) as u128; // exact from 2^-40 up
    let share = (p * u128::from(whole)).div_ceil(1 << 64) as u64;
    share.max(1)
}

/// A token's place in the order as one integer: ascending is by descending logit, then by ascending id.
#[inline(always)]
fn place(logit: f32, id: usize) -> u64 {
    let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit + 0.0 }; // -0 and +0 tie
    let bits = logit.to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!ascending) << 32 | id as u64
}

fn id(place: u64) -> usize {
    place as u32 as usize
}

/// Of `kept`, keeps the smallest start of the order that weighs at least `mass`.
fn keep_mass(kept: &mut Vec<u64>, mass: u64, weigh: impl Fn(usize) -> u64) {
    let end = cut(kept, mass, |&place| place, weigh);
    kept.truncate(end);
}

fn draw_kept(kept: &mut [u64], weigh: impl Fn(usize) -> u64, random: u64) -> TokenId {
    let total: u64 = kept.iter().map(|&place| weigh(id(place))).sum();
    let end = cut(kept, share_of(total, random) + 1, |&place| id(place) as u64, weigh);
    // The last of the smallest start by id that reaches beyond the draw.
    kept[..end]
        .iter()
        .map(|&place| TokenId(id(place) as u32))
        .max_by_key(|token| token.0)
        .unwrap_or(TokenId(0))
}

/// Moves the smallest start, in the order of `key`, that weighs at least `mass` (all, if nothing does) to the front, and
/// returns its length: a selection, linear where a sort is not.
fn cut(places: &mut [u64], mass: u64, key: impl Fn(&u64) -> u64, weigh: impl Fn(usize) -> u64) -> usize {
    let (mut from, mut to, mut before) = (0, places.len(), 0);
    while to - from > 1 {
        let middle = (to - from) / 2;
        let part = &mut places[from..to];
        part.select_nth_unstable_by_key(middle, &key);
        let weight: u64 = part[..middle].iter().map(|&place| weigh(id(place))).sum();
        if before + weight >= mass {
            to = from + middle;
        } else {
            (from, before) = (from + middle, before + weight);
        }
    }
    to
}

/// Where the draw falls in `0..total`.
fn share_of(total: u64, random: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// 64 random bits for output `ordinal` of a pass: the first two words of Philox4x32-10 with the seed as key and
/// (ordinal, queue, pass) as counter.
pub fn random(key: DrawKey, ordinal: u32) -> u64 {
    let counter = [ordinal, key.queue, key.pass as u32, (key.pass >> 32) as u32];
    let words = philox(counter, [key.seed as u32, (key.seed >> 32) as u32]);
    u64::from(words[1]) << 32 | u64::from(words[0])
}

/// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b, c, d] = counter;
        let (ab, cd) = (u64::from(a) * 0xd251_1f53, u64::from(c) * 0xcd9e_8d57);
        counter = [(cd >> 32) as u32 ^ b ^ key[0], cd as u32, (ab >> 32) as u32 ^ d ^ key[1], ab as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// A row with its maxima, for tests that have but the logits.
#[cfg(test)]
pub(super) fn row_of(all: &[f32]) -> Logits<'_> {
    let largest = |part: &[f32]| part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let maxima: Vec<f32> = all.chunks(LOGITS_PER_MAXIMUM).map(largest).collect();
    Logits { all, maxima: maxima.leak() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that are published with the algorithm.
    #[test]
    fn philox_gives_its_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        assert_eq!(philox(pi.0, pi.1), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    fn key(pass: u64) -> DrawKey {
        DrawKey { seed: 0x5eed, queue: 3, pass }
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let keys =
            [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3 + (1 << 32), 4), (1, 2, 3, 5)];
        let mut draws =
            keys.map(|(seed, queue, pass, ordinal)| random(DrawKey { seed, queue, pass }, ordinal));
        draws.sort_unstable();
        assert!(draws.windows(2).all(|pair| pair[0] != pair[1]), "{draws:x?}");
    }

    /// Seeded logits of odd shapes: ties, duplicates of the best, infinities, NaN.
    fn rows() -> Vec<Vec<f32>> {
        let normal = |seed: u64, len: usize, spread: f32| -> Vec<f32> {
            let word = |i| random(DrawKey { seed, queue: 0, pass: 0 }, i) as f32 / u64::MAX as f32;
            (0..len as u32).map(|i| (0..4).map(|j| word(4 * i + j) - 0.5).sum::<f32>() * spread).collect()
        };
        let mut ties = normal(1, 200, 6.0);
        ties.iter_mut().for_each(|logit| *logit = logit.round());
        let mut odd = normal(2, 50, 5.0);
        (odd[3], odd[7], odd[11], odd[13]) = (f32::NAN, f32::NEG_INFINITY, -0.0, 0.0);
        vec![normal(3, 1000, 8.0), ties, odd, vec![2.0; 7], vec![1.5], normal(4, 40, 40.0)]
    }

    fn samplers(temperature: f32) -> Vec<Sampler> {
        let mut all = vec![Sampler::Multinomial { temperature }];
        for k in [0, 1, 2, 7, 40, u32::MAX] {
            all.push(Sampler::TopK { temperature, k });
            for p in [0.0, 0.5, 0.9, 1.0] {
                all.push(Sampler::TopKTopP { temperature, k, p });
            }
        }
        for p in [0.0, 1e-6, 0.3, 0.5, 0.9, 0.999, 1.0, 7.0] {
            all.push(Sampler::TopP { temperature, p });
            all.push(Sampler::MinP { temperature, p });
        }
        all
    }

    /// The exact probabilities in f64, by the definitions, with a full sort.
    fn exact(logits: &[f32], sampler: Sampler) -> Vec<f64> {
        let (t, k, p, min_p) = match sampler {
            Sampler::Multinomial { temperature } => (temperature, 0, 1.0, 0.0),
            Sampler::TopK { temperature, k } => (temperature, k, 1.0, 0.0),
            Sampler::TopP { temperature, p } => (temperature, 0, p, 0.0),
            Sampler::MinP { temperature, p } => (temperature, 0, 1.0, p.min(1.0)),
            Sampler::TopKTopP { temperature, k, p } => (temperature, k, p, 0.0),
        };
        let finite = |id: usize| if logits[id].is_nan() { f64::NEG_INFINITY } else { f64::from(logits[id]) };
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| finite(b).partial_cmp(&finite(a)).expect("no NaN").then(a.cmp(&b)));
        let weight = |id: usize| ((finite(id) - finite(order[0])) / f64::from(t)).exp();
        let k = if k == 0 { logits.len() } else { logits.len().min(k as usize) };
        let total: f64 = order[..k].iter().map(|&id| weight(id)).sum();
        let mut probs = vec![0.0; logits.len()];
        let mut sum = 0.0;
        for &id in &order[..k] {
            if sum > 0.0 && (p < 1.0 && sum >= f64::from(p) * total || weight(id) < f64::from(min_p)) {
                break;
            }
            sum += weight(id);
            probs[id] = weight(id);
        }
        probs.iter().map(|weight| weight / sum).collect()
    }

    #[test]
    fn draws_follow_the_exact_probabilities() {
        const DRAWS: u64 = 4000;
        for (row, logits) in rows().iter().enumerate() {
            let mut sampling = Sampling::new(logits.len());
            for sampler in samplers(0.8) {
                let exact = exact(logits, sampler);
                let mut counts = vec![0u32; logits.len()];
                for pass in 0..DRAWS {
                    counts[sampling.token(row_of(logits), sampler, random(key(pass), 0)).0 as usize] += 1;
                }
                for (id, (&count, &prob)) in counts.iter().zip(&exact).enumerate() {
                    let mean = prob * DRAWS as f64;
                    // Five standard deviations and a few; and nothing at all where nothing is due.
                    let slack = 5.0 * mean.sqrt() + if prob > 0.0 { 4.0 } else { 0.0 };
                    let off = (f64::from(count) - mean).abs();
                    assert!(
                        off <= slack,
                        "row {row}, {sampler:?}, token {id}: {count} draws, {mean} due, seed 0x5eed"
                    );
                }
            }
        }
    }

    #[test]
    fn the_greedy_token_is_the_first_of_the_largest() {
        for temperature in [0.0, -0.0, -1.0, f32::NAN] {
            for sampler in samplers(temperature) {
                let mut sampling = Sampling::new(4);
                let drawn = sampling.token(row_of(&[f32::NAN, 1.0, 3.0, 3.0]), sampler, u64::MAX);
                assert_eq!(drawn, TokenId(2), "{sampler:?}");
            }
        }
    }

    #[test]
    fn extreme_rows_and_temperatures_have_an_answer() {
        let nothing = [f32::NAN, f32::NEG_INFINITY];
        let best = [f32::MAX, -f32::MAX, f32::INFINITY, f32::MAX];
        for random in [0, 1 << 63, u64::MAX] {
            for temperature in [f32::MIN_POSITIVE, 1e-45, 1e-3, 1.0, f32::MAX, f32::INFINITY] {
                for sampler in samplers(temperature) {
                    let mut sampling = Sampling::new(4);
                    assert_eq!(sampling.token(row_of(&nothing), sampler, random), TokenId(0));
                    assert_ne!(sampling.token(row_of(&[2.0, f32::NAN, 2.0]), sampler, random), TokenId(1));
                    let token = sampling.token(row_of(&best), sampler, random);
                    assert!(token != TokenId(1) || temperature > 1e30, "{sampler:?} drew {token:?}");
                    let apart = sampling.token(row_of(&[0.0, 1.0, 0.0]), sampler, random);
                    assert!(apart == TokenId(1) || temperature > 1e-2, "{sampler:?} drew {apart:?}");
                }
            }
        }
    }

    #[test]
    fn a_distribution_is_the_head_of_the_softmax() {
        for logits in rows() {
            let mut sampling = Sampling::new(logits.len());
            let want = exact(&logits, Sampler::Multinomial { temperature: 0.7 });
            for top_k in [0, 1, 5, 32, 5000] {
                let Produced::Distribution { ids, probs } =
                    sampling.distribution(row_of(&logits), 0.7, top_k)
                else {
                    panic!("not a distribution");
                };
                assert_eq!(ids.len(), logits.len().min(top_k as usize));
                assert_eq!(ids.len(), probs.len());
                let logit = |i: usize| logits[ids[i].0 as usize].max(f32::NEG_INFINITY); // NaN: the least
                for i in 1..ids.len() {
                    assert!(probs[i - 1] >= probs[i] && logit(i - 1) >= logit(i), "top {top_k}, place {i}");
                    assert!(logit(i - 1) != logit(i) || ids[i - 1] < ids[i], "top {top_k}, place {i}");
                }
                for (id, prob) in ids.iter().zip(probs) {
                    let want = want[id.0 as usize];
                    assert!(
                        (f64::from(prob) - want).abs() < 1e-6 * want + 1e-12,
                        "{id:?}: {prob}, not {want}"
                    );
                }
            }
        }
        let cold = Sampling::new(3).distribution(row_of(&[1.0, 3.0, 2.0]), 0.0, 32);
        let ids = vec![TokenId(1), TokenId(2), TokenId(0)];
        assert_eq!(cold, Produced::Distribution { ids, probs: vec![1.0, 0.0, 0.0] });
    }
}
