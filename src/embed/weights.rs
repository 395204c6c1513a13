//! A model's large tensors, read once and shared by all its sessions. Knows ONNX's file format, opens no session.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, Tensor};
use prost::Message;

use super::files::LoadError;

/// Smaller tensors are left to each session: together they have less than 1 MB.
const SHARED_BYTES_MIN: usize = 64 << 10;
/// Of `TensorProto.DataType`.
const FLOAT: i32 = 1;
const UINT8: i32 = 2;
const INT8: i32 = 3;

/// What sessions of one model have in common: the weights as they are in the file, and the forms that ONNX Runtime's matrix
/// products want them in. Three fp32 sessions take 210 MB instead of 350.
pub struct Weights {
    tensors: Vec<(String, Arc<DynValue>)>,
    prepacked: PrepackedWeights,
}

/// The part of an ONNX file that holds the weights. Other fields are stepped over. (onnx.proto3, IR version 10.)
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    /// Little-endian, row by row.
    #[prost(bytes = "bytes", tag = "9")]
    raw_data: Bytes,
}

impl Weights {
    /// Reads a model's file. ONNX Runtime has to be loaded.
    pub fn read(path: &Path) -> Result<Weights, LoadError> {
        let unreadable =
            |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Weights { path: path.into(), source };
        let content = std::fs::read(path).map_err(|fault| unreadable(fault.into()))?;
        let model = ModelProto::decode(Bytes::from(content)).map_err(|fault| unreadable(fault.into()))?;
        let mut tensors = vec![];
        for tensor in model.graph.unwrap_or_default().initializer {
            if tensor.raw_data.len() < SHARED_BYTES_MIN {
                continue;
            }
            let (dims, raw) = (tensor.dims, tensor.raw_data);
            let value = match tensor.data_type {
                FLOAT => {
                    let numbers: Vec<f32> = raw.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                    Tensor::from_array((dims, numbers)).map(Tensor::into_dyn)
                }
                UINT8 => Tensor::from_array((dims, raw.to_vec())).map(Tensor::into_dyn),
                INT8 => {
                    let numbers: Vec<i8> = raw.iter().map(|byte| i8::from_le_bytes([*byte])).collect();
                    Tensor::from_array((dims, numbers)).map(Tensor::into_dyn)
                }
                _ => continue,
            };
            let value = value.map_err(|fault| unreadable(fault.into()))?;
            tensors.push((tensor.name, Arc::new(value)));
        }
        Ok(Weights { tensors, prepacked: PrepackedWeights::new() })
    }

    /// Makes a session use these instead of its own.
    pub fn share(&self, mut session: SessionBuilder) -> Result<SessionBuilder, ort::Error> {
        for (name, value) in &self.tensors {
            session = session.with_initializer(name, Arc::clone(value))?;
        }
        Ok(session.with_prepacked_weights(&self.prepacked)?)
    }
}
