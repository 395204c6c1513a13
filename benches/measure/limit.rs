//! The best loop around the bare model that we can write: ONNX Runtime's sessions and nothing of vecsync's but the tokenizer.
//! It has a process of its own: ONNX Runtime allows one environment in a process, and a bare loop has nothing beside it.

use std::collections::HashSet;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ort::environment::Environment;
use ort::ep::CPU;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ort::value::TensorRef;
use serde_json::{Value, json};

use vecsync::embed::tokens::{self, TokenIds, Tokens};

use super::backfill::{ROWS, WORDS};
use super::texts::{self, Entry};
use crate::support::vecsync::model_dir;

/// What the process is called with instead of parts to measure.
pub const ARGUMENT: &str = "bare-loop";
/// Tokens of a window where the pipeline file says nothing.
const WINDOW: usize = 256;
/// What the peers pad to.
const PADDED: usize = 128;
/// Of so many texts one is tried with each choice of options, so many times; the best time counts.
const TRIED: usize = 32;
const TRIES: usize = 3;
/// The tokens of one call, padding included. 1: a text a call.
const BUDGETS: [usize; 6] = [1, 256, 512, 1024, 2048, 4096];
const DIMENSION: usize = 384;

/// How the model is run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Options {
    sessions: usize,
    intra: usize,
    spins: bool,
    budget: usize,
    is_extended: bool,
    arena: bool,
    pattern: bool,
    prepacks: bool,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { sessions, intra, budget, .. } = self;
        write!(f, "{sessions}x{intra} {budget} tokens")?;
        let said = [
            (self.spins, " spinning"),
            (self.is_extended, " level-2"),
            (!self.arena, " no-arena"),
            (self.pattern, " pattern"),
            (!self.prepacks, " no-prepacking"),
        ];
        said.iter().filter(|(holds, _)| *holds).try_for_each(|(_, text)| f.write_str(text))
    }
}

/// The loop's process, as the benchmark sees it.
pub struct Limit {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Limit {
    /// Starts it; it tries all options on a part of the texts and keeps the best.
    pub fn start(model: &str) -> Limit {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args([ARGUMENT, model]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the bare loop");
        let asks = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Limit { child, asks, answers }
    }

    /// Texts, their tokens, the share of padding in the calls in percent, and the best options, said in words on standard error.
    pub fn tuned(&mut self) -> (usize, usize, f64) {
        let answer = self.ask(json!({"tune": true}));
        let number = |name: &str| answer[name].as_u64().expect("a number") as usize;
        (number("texts"), number("tokens"), answer["padding_percent"].as_f64().expect("a number"))
    }

    /// Texts per second with the best options over every `parts`-th text, from `part` on, and with the best of those by which each
    /// text has the vector that it has alone. All parts together are all texts; they are run between the rounds of what they are
    /// compared with, so that a machine that grows slower does so for both.
    pub fn rates(&mut self, part: usize, parts: usize) -> [f64; 2] {
        let answer = self.ask(json!({"part": part, "parts": parts}));
        ["best", "same"].map(|name| answer[name].as_f64().expect("a number"))
    }

    /// Rows per second as the peers embed them: one row a call, padded to 128 tokens.
    pub fn padded(&mut self, rows: &[Entry]) -> f64 {
        let rows: Vec<[&str; 2]> = rows.iter().map(|row| [row.question.as_str(), row.answer.as_str()]).collect();
        self.ask(json!({"padded": rows}))["rate"].as_f64().expect("a number")
    }

    fn ask(&mut self, question: Value) -> Value {
        writeln!(self.asks, "{question}").expect("the bare loop listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the bare loop answers");
        serde_json::from_str(&line).unwrap_or_else(|fault| panic!("the bare loop ended: {line:?}: {fault}"))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The tokenizer alone.
pub fn tokenizer() -> Tokens {
    let json = std::fs::read(model_dir().join("tokenizer.json")).expect("the tokenizer is there");
    Tokens::new(&json).expect("it is a tokenizer")
}

/// What the model is given for a row without a title's weight: its question in front of its answer.
pub fn row_text(tokens: &Tokens, row: &Entry) -> TokenIds {
    let of = |text: &str| tokens.of(text).expect("it can be cut into tokens");
    tokens::input([&of(&row.question), &of(&row.answer)])
}

/// What the model is given for these rows: a question in front of each answer, and each question once by itself.
fn all_texts(rows: &[Entry]) -> Vec<TokenIds> {
    let tokens = tokenizer();
    let titles: HashSet<&str> = rows.iter().map(|row| row.question.as_str()).collect();
    let mut texts: Vec<TokenIds> = rows.iter().map(|row| row_text(&tokens, row)).collect();
    texts.extend(titles.iter().map(|title| tokens::input([&tokens.of(title).expect("it can be cut into tokens")])));
    texts.sort_by_key(|text| (std::cmp::Reverse(text.len()), text.clone()));
    let longest = texts.first().map_or(0, Vec::len);
    assert!(longest <= WINDOW, "a text of {longest} tokens would be split, and this compares something else");
    texts
}

/// The process: answers each line of standard input by one of standard output, until there is none.
pub fn serve(model: &str) -> ExitCode {
    let file = model_dir().join(if model == "fp32" { "model.onnx" } else { "model_int8.onnx" });
    let library = model_dir().join("libonnxruntime.so");
    let environment = ort::init_from(library).expect("the library is there").build().expect("an environment");
    let texts = all_texts(&texts::pieces(ROWS, WORDS));
    let mut best = None;
    for line in std::io::stdin().lines() {
        let question: Value = serde_json::from_str(&line.expect("readable")).expect("JSON");
        let answer = if question["tune"] == true {
            let options = tune(&environment, &file, &texts, &BUDGETS);
            // The int8 model quantises over all texts of a call, so their vectors depend on each other; those of fp32 do not.
            let same = if model == "fp32" { options } else { tune(&environment, &file, &texts, &[1]) };
            let open = |options: Options| (Loop::open(&environment, &file, options), options.budget);
            best = Some([open(options), open(same)]);
            let calls = pack(&texts, options.budget);
            let padded: usize = calls.iter().map(|call| call.len() * call[0].len()).sum();
            let tokens: usize = texts.iter().map(Vec::len).sum();
            let padding = 100.0 * (padded - tokens) as f64 / padded as f64;
            json!({"texts": texts.len(), "tokens": tokens, "padding_percent": padding})
        } else if let Some(rows) = question["padded"].as_array() {
            let text = |row: &Value, field: usize| row[field].as_str().expect("a text").to_owned();
            let tokens = tokenizer();
            let rows = rows.iter().map(|row| Entry { question: text(row, 0), answer: text(row, 1) });
            let rows: Vec<TokenIds> = rows.map(|row| row_text(&tokens, &row)).collect();
            // One session with its own defaults: all cores, and threads that spin.
            let cores = cores();
            let one = Options { sessions: 1, intra: cores, spins: true, ..Options::plain(cores) };
            json!({"rate": Loop::open(&environment, &file, one).padded(&rows)})
        } else {
            let number = |name: &str| question[name].as_u64().expect("a number") as usize;
            let part: Vec<&TokenIds> = texts.iter().skip(number("part")).step_by(number("parts")).collect();
            let rates =
                best.as_mut().expect("tuned first").each_mut().map(|(model, budget)| model.rate(&part, *budget));
            json!({"best": rates[0], "same": rates[1]})
        };
        println!("{answer}");
    }
    ExitCode::SUCCESS
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Options {
    fn plain(cores: usize) -> Options {
        Options {
            sessions: cores,
            intra: 1,
            spins: false,
            budget: 512,
            is_extended: false,
            arena: true,
            pattern: false,
            prepacks: true,
        }
    }
}

/// Tries these budgets, then the split of threads, then each other option on its own, and gives the best of what was tried.
fn tune(environment: &Environment, file: &Path, texts: &[TokenIds], budgets: &[usize]) -> Options {
    let texts: Vec<&TokenIds> = texts.iter().step_by(TRIED).collect();
    let (cores, plain) = (cores(), Options::plain(cores()));
    let mut best = (plain, 0.0);
    let mut try_all = |choices: &[Options]| {
        let mut models: Vec<Loop> = choices.iter().map(|options| Loop::open(environment, file, *options)).collect();
        let mut rates = vec![0.0; choices.len()];
        // By turns, so that what else the machine does for a moment is no choice's fault.
        for _ in 0..TRIES {
            for ((model, options), rate) in models.iter_mut().zip(choices).zip(&mut rates) {
                *rate = model.rate(&texts, options.budget).max(*rate);
            }
        }
        for (options, rate) in choices.iter().zip(rates) {
            eprintln!("bare loop, {options}: {rate:.0} texts/s");
            if rate > best.1 {
                best = (*options, rate);
            }
        }
        best.0
    };
    let on = try_all(&budgets.iter().map(|&budget| Options { budget, ..plain }).collect::<Vec<_>>());
    let one = Options { sessions: 1, intra: cores, ..on };
    let mut split = vec![one];
    if budgets.len() > 1 {
        split.push(Options { budget: (on.budget * 2).max(512), ..one });
    }
    split.extend(split.clone().iter().map(|one| Options { spins: true, ..*one }));
    let on = try_all(&split);
    let best = try_all(&[
        Options { is_extended: true, ..on },
        Options { arena: false, ..on },
        Options { pattern: true, ..on },
        Options { prepacks: false, ..on },
    ]);
    eprintln!("bare loop, the best: {best}");
    best
}

/// Texts by length, longest first, in calls of at most so many tokens, padding included.
fn pack<T: AsRef<[u32]>>(texts: &[T], budget: usize) -> Vec<&[T]> {
    let mut calls = vec![];
    let mut rest = texts;
    while let Some(first) = rest.first() {
        let (call, left) = rest.split_at((budget / first.as_ref().len()).clamp(1, rest.len()));
        calls.push(call);
        rest = left;
    }
    calls
}

/// Sessions, each for a thread of its own.
struct Loop(Vec<One>);

/// A session and its inputs, which are used again and again.
struct One {
    session: Session,
    run: RunOptions<HasSelectedOutputs>,
    output: String,
    ids: Vec<i64>,
    mask: Vec<i64>,
    types: Vec<i64>,
}

impl Loop {
    fn open(environment: &Environment, file: &Path, options: Options) -> Loop {
        Loop((0..options.sessions).map(|_| One::open(environment, file, options)).collect())
    }

    /// Texts per second. They have to be in the order of their lengths, longest first.
    fn rate(&mut self, texts: &[&TokenIds], budget: usize) -> f64 {
        // The first call of a session is slower; it is not the model's rate.
        self.0.iter_mut().for_each(|one| one.embed(&texts[..1], texts[0].len()));
        let (calls, next) = (pack(texts, budget), AtomicUsize::new(0));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for one in &mut self.0 {
                scope.spawn(|| {
                    while let Some(call) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                        one.embed(call, call[0].len());
                    }
                });
            }
        });
        texts.len() as f64 / begun.elapsed().as_secs_f64()
    }

    /// Texts per second, one a call, padded.
    fn padded(&mut self, texts: &[TokenIds]) -> f64 {
        let one = &mut self.0[0];
        one.embed(&[&texts[0]], PADDED);
        let begun = Instant::now();
        texts.iter().for_each(|text| one.embed(&[text], PADDED));
        texts.len() as f64 / begun.elapsed().as_secs_f64()
    }
}

impl One {
    fn open(environment: &Environment, file: &Path, options: Options) -> One {
        let session = session(environment, options).expect("a session takes its options");
        let session = { session }.commit_from_file(file).expect("a session");
        let names: Vec<&str> = session.outputs().iter().map(|output| output.name()).collect();
        let output = ["last_hidden_state", "output_0"].into_iter().find(|name| names.contains(name));
        let output = output.expect("token states").to_owned();
        let run = RunOptions::new().expect("options").with_outputs(OutputSelector::no_default().with(&*output));
        One { session, run, output, ids: vec![], mask: vec![], types: vec![] }
    }

    /// Mean-pooled vectors of unit length, thrown away.
    fn embed(&mut self, texts: &[&TokenIds], columns: usize) {
        for buffer in [&mut self.ids, &mut self.mask, &mut self.types] {
            buffer.clear();
            buffer.resize(texts.len() * columns, 0);
        }
        for (row, text) in texts.iter().enumerate() {
            for (place, id) in (row * columns..).zip(text.iter()) {
                (self.ids[place], self.mask[place]) = (i64::from(*id), 1);
            }
        }
        let shape = [texts.len(), columns];
        let tensor = |numbers| TensorRef::from_array_view((shape, numbers)).expect("a tensor");
        let inputs = ort::inputs![
            "input_ids" => tensor(&self.ids[..]),
            "attention_mask" => tensor(&self.mask[..]),
            "token_type_ids" => tensor(&self.types[..]),
        ];
        let outputs = self.session.run_with_options(inputs, &self.run).expect("the model runs");
        let (_, states) = outputs[&*self.output].try_extract_tensor::<f32>().expect("numbers");
        for (text, states) in texts.iter().zip(states.chunks_exact(columns * DIMENSION)) {
            let mut mean = [0.0_f32; DIMENSION];
            for state in states[..text.len() * DIMENSION].chunks_exact(DIMENSION) {
                mean.iter_mut().zip(state).for_each(|(sum, component)| *sum += component);
            }
            let norm = mean.iter().map(|component| component * component).sum::<f32>().sqrt();
            std::hint::black_box(mean.map(|component| component / norm));
        }
    }
}

fn session(environment: &Environment, options: Options) -> Result<SessionBuilder, ort::Error> {
    let level = if options.is_extended { GraphOptimizationLevel::Level2 } else { GraphOptimizationLevel::All };
    Ok(Session::builder(environment)?
        .with_execution_providers([CPU::default().with_arena_allocator(options.arena).build()])?
        .with_optimization_level(level)?
        .with_intra_threads(options.intra)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(options.spins)?
        .with_memory_pattern(options.pattern)?
        .with_prepacking(options.prepacks)?)
}
