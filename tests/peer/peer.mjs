// Tartlet beside llama.cpp: the same model file, the same machine, in turn, so that a slow minute meets both.
//
// usage: node peer.mjs TARTLET MODULES MODEL [THREADS]
//
// A round is `tartlet bench` and then llama.mjs, each in a process of its own. Printed are the medians over all rounds
// and their ratio. llama.cpp's threads wait by spinning, and node has a thread too: where that costs more than a thread
// brings, one thread fewer is faster, so both are tried and the better counts. Where `llama-bench` and `llama-batched-bench` are installed, their own tables follow.
import { execFileSync, spawnSync } from "node:child_process";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const [tartlet, modules, model, threads = String(availableParallelism())] = process.argv.slice(2);
const ROUNDS = 5;
const here = dirname(fileURLToPath(import.meta.url));
const FIGURES = [
    { name: "decode", ours: "decode.64", what: "decode behind 64 tokens" },
    { name: "prefill", ours: "prefill.512", what: "prefill of 512 tokens" },
];

function run(program, args) {
    // What a tool says about its progress stays off; what it says when it fails is shown.
    const ended = spawnSync(program, args, { encoding: "utf8", maxBuffer: 64 << 20 });
    if (ended.status !== 0) {
        const why = ended.error?.message ?? ended.stderr.trim().split("\n").at(-1) ?? "";
        console.error(`${program} failed: ${why}`);
        process.exit(1);
    }
    return JSON.parse(ended.stdout);
}

function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = Math.floor(sorted.length / 2);
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const only = FIGURES.flatMap(({ ours }) => ["--only", ours]);
const ours = { decode: [], prefill: [] };
const theirs = { decode: [], prefill: [] };
const counts = Number(threads) > 1 ? [Number(threads), Number(threads) - 1] : [1];
let report, peer;
for (let round = 1; round <= ROUNDS; round += 1) {
    if (process.stderr.isTTY) process.stderr.write(`\rround ${round} of ${ROUNDS} `);
    report = run(tartlet, ["bench", "--json", "--model", model, "--threads", threads, ...only]);
    const peers = counts.map((count) => run(process.execPath, [join(here, "llama.mjs"), modules, model, String(count)]));
    peer = peers[0];
    for (const { name, ours: figure } of FIGURES) {
        ours[name].push(report.measures.find((measure) => measure.name === figure).median);
        theirs[name].push(Math.max(...peers.map((one) => median(one[name]))));
    }
}
if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");

console.log(`${report.machine.processor}, ${report.machine.cores} cores, ${threads} threads, ${report.date}`);
console.log(`${report.model.name}; ${report.model.description}`);
console.log(`ours: tartlet ${report.version}, ${report.model.device}`);
console.log(`theirs: llama.cpp ${peer.llamaCpp} by node-llama-cpp ${peer.version}, the better of ${counts.join(" and ")} threads; ${peer.system}`);
console.log(`medians of ${ROUNDS} rounds in turn, tokens/s`);
for (const { name, what } of FIGURES) {
    const [a, b] = [median(ours[name]), median(theirs[name])];
    const rounds = ours[name].map((value, round) => value / theirs[name][round]);
    const spread = `${Math.min(...rounds).toFixed(2)} … ${Math.max(...rounds).toFixed(2)} by round`;
    console.log(`  ${what.padEnd(28)} ours ${a.toFixed(1).padStart(8)}  theirs ${b.toFixed(1).padStart(8)}  ratio ${(a / b).toFixed(2)} (${spread})`);
}

// Their own instruments, where a person has installed them: no binding between, and many sequences too.
const beside = [
    ["llama-bench", ["-m", model, "-t", threads, "-ngl", "0", "-p", "512", "-n", "64", "-r", "5"]],
    ["llama-batched-bench", ["-m", model, "-t", threads, "-ngl", "0", "-c", "8192", "-npp", "64", "-ntg", "32", "-npl", "1,2,4,8,16,32"]],
];
for (const [program, args] of beside) {
    const version = spawnSync(program, ["--version"], { encoding: "utf8" });
    if (version.error) {
        console.log(`${program} is not installed: left out`);
        continue;
    }
    console.log(`\n${program}: ${(version.stderr + version.stdout).trim().split("\n")[0]}`);
    console.log(execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
}
