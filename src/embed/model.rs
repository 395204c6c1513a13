//! One ONNX Runtime session: opens the model and turns token ids into unit vectors. No threads, no queue, no cache.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::ep::CPU;
use ort::logging::LogLevel;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ort::value::TensorRef;

use super::files::{LoadError, check_library};
use super::tokens::TokenIds;
use super::weights::Weights;

/// Length of a vector.
pub const DIMENSION: usize = 384;
/// The longest text that the model has positions for, special tokens included.
pub const TOKENS_MAX: usize = 512;

/// A vector of unit length, `DIMENSION` long.
pub type Vector = Vec<f32>;

/// A text has no vector.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EmbedError {
    /// ONNX Runtime refuses this text, and takes another.
    #[error("embed a text of {tokens} tokens")]
    Text {
        /// Its length.
        tokens: usize,
        /// What ONNX Runtime said.
        #[source]
        source: Arc<ort::Error>,
    },
    /// ONNX Runtime takes no text at all: the fault is not the text's.
    #[error("run the model")]
    Model(#[source] Arc<ort::Error>),
    /// The text is longer than the model's positions, or has no token at all.
    #[error("embed a text of {tokens} tokens: wanted 1 to {TOKENS_MAX}")]
    Length {
        /// Its length.
        tokens: usize,
    },
    /// The vector has a component that is not a number.
    #[error("embed a text of {tokens} tokens: the vector has a component that is not a finite number")]
    NotFinite {
        /// The text's length.
        tokens: usize,
    },
    /// The vector has no direction.
    #[error("embed a text of {tokens} tokens: the vector's norm is zero")]
    ZeroNorm {
        /// The text's length.
        tokens: usize,
    },
    /// A window's vector and its title's cancel each other out.
    #[error("mix a window's vector with its title's: they cancel each other out")]
    Opposed,
    /// The model's output does not have the form that was wanted.
    #[error("embed: the model's output has the shape {found:?}, wanted {wanted:?}")]
    Shape {
        /// The output's shape: texts, tokens, components.
        found: Vec<i64>,
        /// The shape that belongs to the input.
        wanted: [i64; 3],
    },
    /// The tokenizer refuses the text.
    #[error("tokenize a text: {0}")]
    Tokenizer(String),
    /// There is nothing to embed in the text.
    #[error("embed a query: it has no word in it")]
    Empty,
    /// Too many queries wait already.
    #[error("embed a query: {waiting} queries wait already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The threads that run the model are gone.
    #[error("embed: the model is shut down")]
    Stopped,
}

impl EmbedError {
    /// Whether the fault is this text's: embedding it again gives the same, and other texts go on.
    pub fn is_of_the_text(&self) -> bool {
        match self {
            EmbedError::Text { .. }
            | EmbedError::Length { .. }
            | EmbedError::NotFinite { .. }
            | EmbedError::ZeroNorm { .. }
            | EmbedError::Opposed
            | EmbedError::Tokenizer(_)
            | EmbedError::Empty => true,
            EmbedError::Model(_) | EmbedError::Shape { .. } | EmbedError::Busy { .. } | EmbedError::Stopped => false,
        }
    }
}

/// The environment of ONNX Runtime: the library allows one a process, so the first model that is opened makes it.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// A model in memory. One call at a time.
pub struct Model {
    session: Session,
    options: RunOptions<HasSelectedOutputs>,
    output: String,
    ids: Vec<i64>,
    mask: Vec<i64>,
    types: Vec<i64>,
}

/// A model's file and what its sessions share.
pub struct ModelFile {
    path: PathBuf,
    environment: Environment,
    weights: Weights,
}

impl ModelFile {
    /// Reads a model with ONNX Runtime's library `runtime`. A process keeps the library that it opened first.
    pub fn read(path: &Path, runtime: &Path) -> Result<ModelFile, LoadError> {
        let environment = environment(runtime)?;
        Ok(ModelFile { path: path.to_owned(), environment, weights: Weights::read(path)? })
    }

    /// Opens a session. Its calls run on the thread that makes them.
    pub fn open(&self) -> Result<Model, LoadError> {
        let fault = |source: ort::Error| LoadError::Session { path: self.path.clone(), source };
        let session = self.session().map_err(fault)?;
        let names: Vec<&str> = session.outputs().iter().map(|output| output.name()).collect();
        // The fp32 file calls the states of the tokens `output_0`, the int8 file `last_hidden_state`. The fp32 file
        // has another output, which is of no use here and is not computed.
        let output = ["last_hidden_state", "output_0"]
            .into_iter()
            .find(|name| names.contains(name))
            .ok_or_else(|| LoadError::Outputs { path: self.path.clone(), found: names.join(", ") })?
            .to_owned();
        let options = RunOptions::new().map_err(fault)?.with_outputs(OutputSelector::no_default().with(&*output));
        Ok(Model { session, options, output, ids: vec![], mask: vec![], types: vec![] })
    }

    fn session(&self) -> Result<Session, ort::Error> {
        let builder = Session::builder(&self.environment)?
            // Measured with fp32: without the arena resident memory peaks 70 to 180 MB higher and calls are no faster.
            .with_execution_providers([CPU::default().with_arena_allocator(true).build()])?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            // A pattern is kept for each shape that was ever seen, and here nearly every shape is new.
            .with_memory_pattern(false)?;
        self.weights.share(builder)?.commit_from_file(&self.path)
    }
}

impl Model {
    /// Embeds texts in one call: pads them to the longest, averages the states of each text's own tokens and
    /// scales the mean to length one. The outer error concerns all texts, an inner one its text.
    pub fn run(&mut self, texts: &[&TokenIds]) -> Result<Vec<Result<Vector, EmbedError>>, ort::Error> {
        let (rows, columns) = (texts.len(), texts.iter().map(|text| text.len()).max().unwrap_or(0));
        for buffer in [&mut self.ids, &mut self.mask, &mut self.types] {
            buffer.clear();
            buffer.resize(rows * columns, 0);
        }
        for (row, text) in texts.iter().enumerate() {
            let start = row * columns;
            for (offset, id) in text.iter().enumerate() {
                self.ids[start + offset] = i64::from(*id);
                self.mask[start + offset] = 1;
            }
        }
        let shape = [rows, columns];
        let inputs = ort::inputs![
            "input_ids" => TensorRef::from_array_view((shape, &self.ids[..]))?,
            "attention_mask" => TensorRef::from_array_view((shape, &self.mask[..]))?,
            "token_type_ids" => TensorRef::from_array_view((shape, &self.types[..]))?,
        ];
        let outputs = self.session.run_with_options(inputs, &self.options)?;
        let (found, states) = outputs[&*self.output].try_extract_tensor::<f32>()?;
        Ok(vectors(found, states, texts, columns))
    }
}

/// Each text's vector out of the states of all texts' tokens, padded to `columns`; refused whole where these have another form.
fn vectors(found: &[i64], states: &[f32], texts: &[&TokenIds], columns: usize) -> Vec<Result<Vector, EmbedError>> {
    let wanted = [texts.len() as i64, columns as i64, DIMENSION as i64];
    if *found != wanted {
        let fault = EmbedError::Shape { found: found.to_vec(), wanted };
        return texts.iter().map(|_| Err(fault.clone())).collect();
    }
    let states = states.chunks_exact((columns * DIMENSION).max(1));
    texts.iter().zip(states).map(|(text, states)| pool(&states[..text.len() * DIMENSION])).collect()
}

/// The mean of token states, each `DIMENSION` long, scaled to length one. The order of the sums is fixed, so the
/// vector does not depend on what else is in the batch.
fn pool(states: &[f32]) -> Result<Vector, EmbedError> {
    let tokens = states.len() / DIMENSION;
    let mut vector = vec![0.0; DIMENSION];
    for state in states.chunks_exact(DIMENSION) {
        for (sum, component) in vector.iter_mut().zip(state) {
            *sum += component;
        }
    }
    normalise(&mut vector).map_err(|fault| match fault {
        NoDirection::NotFinite => EmbedError::NotFinite { tokens },
        NoDirection::Zero => EmbedError::ZeroNorm { tokens },
    })?;
    Ok(vector)
}

/// Why a vector cannot be scaled to length one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDirection {
    /// A component is not a finite number.
    NotFinite,
    /// Its norm is zero.
    Zero,
}

/// Scales a vector to length one.
pub fn normalise(vector: &mut [f32]) -> Result<(), NoDirection> {
    let norm = vector.iter().map(|component| f64::from(*component).powi(2)).sum::<f64>().sqrt();
    if !norm.is_finite() {
        return Err(NoDirection::NotFinite);
    }
    // A smaller norm is rounding noise: its direction says nothing about the text.
    if norm < 1e-12 {
        return Err(NoDirection::Zero);
    }
    for component in vector {
        *component = (f64::from(*component) / norm) as f32;
    }
    Ok(())
}

fn environment(runtime: &Path) -> Result<Environment, LoadError> {
    let mut made = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*made {
        return Ok(environment.clone());
    }
    let path = std::path::absolute(runtime).unwrap_or_else(|_| PathBuf::from(runtime));
    check_library(&path)?;
    let builder = ort::init_from(&path).map_err(|source| LoadError::Runtime {
        path: path.clone(),
        // ort says that it failed, and not why.
        source: why_not_loaded(&path).map_or_else(|| source.into(), Into::into),
    })?;
    let environment = builder
        .with_name("vecsync")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|source| LoadError::Runtime { path, source: Box::new(source) })?;
    environment.set_log_level(LogLevel::Warning);
    *made = Some(environment.clone());
    Ok(environment)
}

/// What the system's loader says against a library; `None`: nothing, so something else is wrong with it.
fn why_not_loaded(path: &Path) -> Option<String> {
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: the name ends with a zero and lives as long as the call; a library that loads here is the one that ort was to load,
    // whose initialisers run there as well. What dlerror gives belongs to this thread until its next call.
    unsafe {
        let library = libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
        if !library.is_null() {
            libc::dlclose(library);
            return None;
        }
        let said = libc::dlerror();
        (!said.is_null()).then(|| CStr::from_ptr(said).to_string_lossy().into_owned())
    }
}

fn log(level: LogLevel, category: &str, _id: &str, _place: &str, message: &str) {
    match level {
        LogLevel::Verbose | LogLevel::Info => tracing::trace!(category, "ONNX Runtime: {message}"),
        LogLevel::Warning => tracing::debug!(category, "ONNX Runtime: {message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::warn!(category, "ONNX Runtime: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_averages_and_scales() {
        let mut states = vec![0.0; 2 * DIMENSION];
        (states[0], states[DIMENSION + 1]) = (3.0, 4.0);
        let vector = pool(&states).expect("a direction");
        assert_eq!((vector[0], vector[1], vector[2]), (0.6, 0.8, 0.0));
    }

    #[test]
    fn states_of_another_width_number_or_length_are_refused_and_no_fault_of_a_text() {
        let texts = [&vec![101, 7, 102], &vec![101, 102]];
        let check = |found: [i64; 3], fits: bool| {
            let states = vec![0.5; found.iter().product::<i64>() as usize];
            let results = vectors(&found, &states, &texts, 3);
            assert_eq!(results.len(), 2);
            for result in results {
                match result {
                    Ok(vector) => assert!(fits && vector.len() == DIMENSION, "{found:?}"),
                    Err(fault) => assert!(!fits && !fault.is_of_the_text(), "{found:?}: {fault}"),
                }
            }
        };
        check([2, 3, 384], true);
        check([2, 3, 383], false);
        check([2, 3, 768], false);
        check([1, 3, 384], false);
        check([2, 2, 384], false);
    }

    #[test]
    fn a_vector_without_direction_is_refused() {
        let filled = |value: f32| vec![value; DIMENSION];
        assert!(matches!(pool(&filled(0.0)), Err(EmbedError::ZeroNorm { tokens: 1 })));
        assert!(matches!(pool(&filled(f32::NAN)), Err(EmbedError::NotFinite { tokens: 1 })));
        assert!(matches!(pool(&filled(f32::INFINITY)), Err(EmbedError::NotFinite { tokens: 1 })));
        let mut one = filled(0.0);
        one[7] = f32::NAN;
        assert!(matches!(pool(&one), Err(EmbedError::NotFinite { .. })));
    }
}
