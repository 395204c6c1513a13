//! The model's files: finds them, and refuses one that is missing, truncated or swapped. Opens no session.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::config;
use crate::config::Precision;

/// all-MiniLM-L6-v2, ONNX, fp32.
const FP32_SHA256: &str = "ca46f1a88a9c6e61b918af1ab38be3e7903b986616551f0a6f10a7ecc5730cd4";
/// all-MiniLM-L6-v2, ONNX, dynamically quantised.
const INT8_SHA256: &str = "afdb6f1a0e45b715d0bb9b11772f032c399babd23bfc31fed1c170afc848bdb1";
/// What a file has to have that may be either.
const EITHER: &str = "ca46f1a88a9c6e61b918af1ab38be3e7903b986616551f0a6f10a7ecc5730cd4 (fp32) or \
                      afdb6f1a0e45b715d0bb9b11772f032c399babd23bfc31fed1c170afc848bdb1 (int8)";
/// Its tokenizer.
const TOKENIZER_SHA256: &str = "da0e79933b9ed51798a3ae27893d3c5fa4a201126cef75586296df9b4d2c62a0";
/// The fp32 file has 91 MB, the int8 file 23: what is longer than this is taken for fp32 until its hash says more.
const FP32_BYTES_MIN: u64 = 50_000_000;

/// The model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("load {what} {}: {source}; wanted sha256 {wanted}; set {setting} to the folder that has it (`make setup` fetches it into models/all-MiniLM-L6-v2)", path.display())]
    Read {
        /// What the file is.
        what: &'static str,
        /// Where it is looked for.
        path: PathBuf,
        /// The hash that it should have.
        wanted: &'static str,
        /// The setting that says where it is.
        setting: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is not the one that was wanted.
    #[error("load {what} {}: {found_is}: sha256 is {found} ({bytes} bytes), wanted {wanted}; {remedy}", path.display())]
    Hash {
        /// What the file is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The hash it has.
        found: String,
        /// Its length.
        bytes: u64,
        /// The hash it should have.
        wanted: &'static str,
        /// What it seems to be.
        found_is: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// ONNX Runtime's library is missing or cannot be used.
    #[error("load ONNX Runtime {}: wanted its shared library, version 1.24 or newer, which stands beside the model after `make setup`; ORT_DYLIB_PATH names another", path.display())]
    Runtime {
        /// Where it is looked for.
        path: PathBuf,
        /// What the loader said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model's file is no ONNX file.
    #[error("read the weights of model {}", path.display())]
    Weights {
        /// The model.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// ONNX Runtime does not take the model.
    #[error("open model {}", path.display())]
    Session {
        /// The model.
        path: PathBuf,
        /// What ONNX Runtime said.
        source: ort::Error,
    },
    /// The model does not give token states.
    #[error("open model {}: it has no output last_hidden_state or output_0, it has {found}", path.display())]
    Outputs {
        /// The model.
        path: PathBuf,
        /// The outputs it has.
        found: String,
    },
    /// The tokenizer's file has not the form that was wanted.
    #[error("read tokenizer {}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A thread cannot be started.
    #[error("start a thread for the model")]
    Thread(#[source] io::Error),
}

/// Which files are used. None is opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The model.
    pub model: PathBuf,
    /// What it is, or claims to be.
    pub precision: Precision,
    /// Nobody has said so: there is one file, and its length says which it is.
    pub is_guessed: bool,
    /// The tokenizer.
    pub tokenizer: PathBuf,
    /// ONNX Runtime's library.
    pub runtime: PathBuf,
}

impl Files {
    /// Chooses the files that the settings ask for. Without a wish the int8 model is preferred: it is twice as fast
    /// and finds as well.
    pub fn choose(settings: &config::Model) -> Files {
        let folder = &settings.dir;
        let (plain, quantised) = (folder.join("model.onnx"), folder.join("model_int8.onnx"));
        let is_guessed = settings.precision.is_none() && plain.exists() && !quantised.exists();
        let (model, precision) = match settings.precision {
            Some(Precision::Fp32) => (plain, Precision::Fp32),
            Some(Precision::Int8) if plain.exists() && !quantised.exists() => (plain, Precision::Int8),
            None if is_guessed => {
                let fp32 = plain.metadata().is_ok_and(|file| file.len() >= FP32_BYTES_MIN);
                (plain, if fp32 { Precision::Fp32 } else { Precision::Int8 })
            }
            Some(Precision::Int8) | None => (quantised, Precision::Int8),
        };
        let runtime = settings.runtime.clone().unwrap_or_else(|| find_runtime(folder));
        Files { model, precision, is_guessed, tokenizer: folder.join("tokenizer.json"), runtime }
    }

    /// The hashes that model and tokenizer have to have.
    pub fn hashes(&self) -> (&'static str, &'static str) {
        let model = match self.precision {
            Precision::Fp32 => FP32_SHA256,
            Precision::Int8 => INT8_SHA256,
        };
        (model, TOKENIZER_SHA256)
    }

    /// Hashes the model. Reads it from end to end: 60 to 300 ms.
    pub fn check_model(&self) -> Result<&'static str, LoadError> {
        let (wanted, _) = self.hashes();
        let what = match self.precision {
            Precision::Fp32 => "fp32 model",
            Precision::Int8 => "int8 model",
        };
        let fault =
            |source| LoadError::Read { what, path: self.model.clone(), wanted, setting: "VECSYNC_MODEL_DIR", source };
        let mut file = File::open(&self.model).map_err(fault)?;
        let (found, bytes) = hash(&mut file).map_err(fault)?;
        if self.is_guessed && found != wanted {
            return check_hash("model", &self.model, found, bytes, EITHER);
        }
        check_hash(what, &self.model, found, bytes, wanted)
    }

    /// Reads and hashes the tokenizer.
    pub fn read_tokenizer(&self) -> Result<(Vec<u8>, &'static str), LoadError> {
        let (what, wanted) = ("tokenizer", TOKENIZER_SHA256);
        let content = std::fs::read(&self.tokenizer).map_err(|source| LoadError::Read {
            what,
            path: self.tokenizer.clone(),
            wanted,
            setting: "VECSYNC_MODEL_DIR",
            source,
        })?;
        let (found, bytes) = (hex(&Sha256::digest(&content)), content.len() as u64);
        Ok((content, check_hash(what, &self.tokenizer, found, bytes, wanted)?))
    }
}

fn check_hash(
    what: &'static str,
    path: &Path,
    found: String,
    bytes: u64,
    wanted: &'static str,
) -> Result<&'static str, LoadError> {
    if found == wanted {
        return Ok(wanted);
    }
    let (found_is, remedy) = match &*found {
        FP32_SHA256 => ("it is the fp32 model", "set VECSYNC_MODEL=fp32, or put the right file there"),
        INT8_SHA256 => ("it is the int8 model", "set VECSYNC_MODEL=int8, or put the right file there"),
        _ => (
            "it is truncated or another file",
            "put the right one there (`make setup` mends it in models/all-MiniLM-L6-v2, the folder that is used by default)",
        ),
    };
    Err(LoadError::Hash { what, path: path.to_owned(), found, bytes, wanted, found_is, remedy })
}

/// The library beside the model: the plain name, else the first one with a version.
fn find_runtime(folder: &Path) -> PathBuf {
    let plain = folder.join("libonnxruntime.so");
    if plain.exists() {
        return plain;
    }
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libonnxruntime.so"))
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(named).min().unwrap_or(plain)
}

/// Refuses a shared library that is shorter than its ELF header says: to load it would end the process by a signal,
/// without a word. Which library it is, is not checked: distributions build their own. Another format is left to the
/// loader. (System V gABI, "ELF header": section headers stand at the end of what linkers write.)
pub fn check_library(path: &Path) -> Result<(), LoadError> {
    let fault = |source: io::Error| LoadError::Runtime { path: path.to_owned(), source: Box::new(source) };
    let mut file = File::open(path).map_err(fault)?;
    let bytes = file.metadata().map_err(fault)?.len();
    let mut header = [0; 64];
    let is_elf = file.read_exact(&mut header).is_ok() && header.starts_with(b"\x7fELF\x02\x01");
    let wanted = if is_elf { elf_length(&header) } else { 0 };
    if bytes == 0 || bytes < wanted {
        return Err(fault(io::Error::other(format!("it is truncated: {bytes} bytes, wanted at least {wanted}"))));
    }
    Ok(())
}

/// Where the section headers of a 64-bit little-endian ELF file end.
fn elf_length(header: &[u8; 64]) -> u64 {
    let number = |place: usize| u64::from(u16::from_le_bytes([header[place], header[place + 1]]));
    let offset = (0..4).map(|word| number(0x28 + 2 * word) << (16 * word)).sum::<u64>();
    offset.saturating_add(number(0x3a) * number(0x3c))
}

fn hash(file: &mut File) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hex(&hasher.finalize()), bytes)),
            count => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_cut_short_is_refused_before_it_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("library.so");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            check_library(&path).err().map(|error| crate::retry::Chain(&error).to_string())
        };
        let program = std::fs::read(std::env::current_exe().expect("this test")).expect("readable");
        assert_eq!(refused(&program), None);
        for length in [0, 100, program.len() / 2, program.len() - 1] {
            let told = refused(&program[..length]).expect("a refusal");
            assert!(told.contains("library.so") && told.contains("truncated"), "{told}");
        }
        assert_eq!(refused(b"#!/bin/sh"), None, "the loader says more of what is no library");
        let missing = check_library(&folder.path().join("none")).expect_err("a refusal");
        assert!(crate::retry::Chain(&missing).to_string().contains("No such file"), "{missing}");
    }
}
