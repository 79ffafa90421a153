//! Faults in what the model is asked: pages, masks, tokens, positions, samplers, and what this model cannot do. The
//! calls are well-formed; only their meaning is wrong.

use crate::Mode;
use inferlet::api::{self, adapter, forward, image, tokenize, zo};

const PAGE: u32 = 0;
const EMBED: u32 = 1;
const ADAPTER: u32 = 2;

pub const MODES: &[Mode] = &[
    ("page-unknown", || pass(|p| p.kv(&[4711], 1).tokens(&[1], &[0]).ask())),
    ("page-freed", || {
        pass(|p| {
            let page = p.page();
            api::deallocate_resources(&p.queue, PAGE, &[page]);
            p.kv(&[page], 1).tokens(&[1], &[0]).ask()
        })
    }),
    ("page-freed-twice", || {
        pass(|p| {
            let page = p.page();
            api::deallocate_resources(&p.queue, PAGE, &[page]);
            api::deallocate_resources(&p.queue, PAGE, &[page]);
        })
    }),
    ("page-twice-in-pass", || {
        pass(|p| {
            let page = p.page();
            p.kv(&[page, page], 2).tokens(&[1, 2], &[0, 1]).ask()
        })
    }),
    ("page-last-length-zero", || pass(|p| p.fresh(0).tokens(&[1], &[0]).ask())),
    ("page-last-length-long", || pass(|p| p.fresh(100_000).tokens(&[1], &[0]).ask())),
    ("page-too-short", || pass(|p| p.fresh(1).tokens(&[1, 2, 3], &[0, 1, 2]).ask())),
    ("page-none", || pass(|p| p.kv(&[], 0).tokens(&[1], &[0]).ask())),
    ("page-kind", || {
        pass(|p| {
            api::allocate_resources(&p.queue, 7, 1);
        })
    }),
    ("page-count", || {
        pass(|p| {
            api::allocate_resources(&p.queue, PAGE, u32::MAX);
        })
    }),
    ("page-import-unknown", || {
        pass(|p| {
            api::import_resources(&p.queue, PAGE, "nobody exported this");
        })
    }),
    ("page-export-unknown", || pass(|p| api::export_resources(&p.queue, PAGE, &[4711], "mine"))),
    ("embed-count", || {
        pass(|p| {
            api::allocate_resources(&p.queue, EMBED, u32::MAX);
        })
    }),
    ("embed-unknown", || {
        pass(|p| {
            p.fresh(1);
            forward::input_embeddings(&p.pass, &[4711], &[0]);
            p.ask()
        })
    }),
    ("mask-too-few-rows", || masked(&[&[1]])),
    ("mask-too-many-rows", || masked(&[&[1], &[2], &[3], &[4]])),
    ("mask-row-short", || masked(&[&[1], &[2], &[2]])),
    ("mask-row-long", || masked(&[&[1], &[2], &[4]])),
    ("mask-row-empty", || masked(&[&[1], &[2], &[]])),
    ("mask-row-overflow", || masked(&[&[1], &[2], &[u32::MAX, u32::MAX, 5]])),
    ("token-unknown", || pass(|p| p.fresh(1).tokens(&[u32::MAX], &[0]).ask())),
    ("token-just-outside", || {
        pass(|p| {
            let vocabulary = tokenize::get_tokenizer(&p.model).get_vocabs().0;
            let last = vocabulary.into_iter().max().expect("a vocabulary is not empty");
            p.fresh(1).tokens(&[last + 1], &[0]).ask()
        })
    }),
    ("token-none", || pass(|p| p.fresh(1).ask())),
    ("detokenize-unknown", || {
        pass(|p| {
            tokenize::get_tokenizer(&p.model).detokenize(&[1, u32::MAX]);
        })
    }),
    ("position-missing", || pass(|p| p.fresh(2).tokens(&[1, 2], &[0]).ask())),
    ("position-extreme", || pass(|p| p.fresh(2).tokens(&[1, 2], &[u32::MAX, 0]).ask())),
    ("index-outside", || {
        pass(|p| p.fresh(2).tokens(&[1, 2], &[0, 1]).output(|pass| forward::output_tokens(pass, &[2], 0.0)))
    }),
    ("temperature-negative", || sampled(|pass| forward::output_tokens(pass, &[0], -1.0))),
    ("temperature-nan", || sampled(|pass| forward::output_tokens(pass, &[0], f32::NAN))),
    ("temperature-infinite", || sampled(|pass| forward::output_tokens(pass, &[0], f32::INFINITY))),
    ("temperature-distribution", || {
        sampled(|pass| forward::output_distributions(pass, &[0], f32::NAN, Some(4)))
    }),
    ("top-p-negative", || sampled(|pass| forward::output_tokens_top_p(pass, &[0], 1.0, -0.5))),
    ("top-p-nan", || sampled(|pass| forward::output_tokens_top_p(pass, &[0], 1.0, f32::NAN))),
    ("min-p-nan", || sampled(|pass| forward::output_tokens_min_p(pass, &[0], 1.0, f32::NAN))),
    ("top-k-top-p-nan", || sampled(|pass| forward::output_tokens_top_k_top_p(pass, &[0], 1.0, 4, f32::NAN))),
    ("execute-twice", || {
        pass(|p| {
            p.fresh(1).tokens(&[1], &[0]).ask();
            let _ = p.pass.execute();
        })
    }),
    ("image", || pass(|p| image::image::embed_image(&p.queue, &[0], b"GIF89a", 0))),
    ("image-size", || {
        pass(|p| {
            image::image::calculate_embed_size(&p.queue, 640, 480);
        })
    }),
    ("adapter-set", || pass(|p| adapter::common::set_adapter(&p.pass, 0))),
    ("adapter-allocate", || {
        pass(|p| {
            let adapter = api::allocate_resources(&p.queue, ADAPTER, 1);
            adapter::common::set_adapter(&p.pass, adapter[0]);
        })
    }),
    ("adapter-upload", || {
        pass(|p| adapter::common::upload_adapter(&p.queue, 0, "mine", api::Blob::new(b"weights")))
    }),
    ("adapter-download", || {
        pass(|p| {
            adapter::common::download_adapter(&p.queue, 0, "mine");
        })
    }),
    ("evolve-seed", || pass(|p| zo::evolve::set_adapter_seed(&p.pass, 42))),
    ("evolve-start", || pass(|p| zo::evolve::initialize_adapter(&p.queue, 0, 8, 16.0, 4, 0.5, 0.01))),
    ("evolve-update", || pass(|p| zo::evolve::update_adapter(&p.queue, 0, &[0.5], &[42], 0.01))),
];

/// One pass under construction.
struct Pass {
    model: api::Model,
    queue: api::Queue,
    pass: forward::ForwardPass,
}

fn pass(wrong: impl FnOnce(&Pass)) -> String {
    let name = api::runtime::get_all_models().swap_remove(0);
    let model = api::runtime::get_model(&name).expect("a listed model is there");
    let queue = model.create_queue();
    let pass = forward::create_forward_pass(&queue);
    wrong(&Pass { model, queue, pass });
    "survived".to_string()
}

/// Three tokens in one page under a mask of these rows.
fn masked(rows: &[&[u32]]) -> String {
    pass(|p| {
        p.fresh(3).tokens(&[1, 2, 3], &[0, 1, 2]);
        forward::attention_mask(&p.pass, &rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>());
        p.ask()
    })
}

/// One token with this output.
fn sampled(output: impl FnOnce(&forward::ForwardPass)) -> String {
    pass(|p| p.fresh(1).tokens(&[1], &[0]).output(output))
}

impl Pass {
    fn page(&self) -> u32 {
        api::allocate_resources(&self.queue, PAGE, 1)[0]
    }

    fn kv(&self, pages: &[u32], last_length: u32) -> &Pass {
        forward::kv_cache(&self.pass, pages, last_length);
        self
    }

    /// A page of its own, said to hold `length` tokens after this pass.
    fn fresh(&self, length: u32) -> &Pass {
        self.kv(&[self.page()], length)
    }

    fn tokens(&self, tokens: &[u32], positions: &[u32]) -> &Pass {
        forward::input_tokens(&self.pass, tokens, positions);
        self
    }

    fn output(&self, output: impl FnOnce(&forward::ForwardPass)) {
        output(&self.pass);
        if let Some(result) = self.pass.execute() {
            result.pollable().block();
            let _ = result.get_tokens();
            let _ = result.get_distributions();
        }
    }

    /// Runs the pass with one greedy token at its first row.
    fn ask(&self) {
        self.output(|pass| forward::output_tokens(pass, &[0], 0.0));
    }
}
