//! A guest's blob as frames for its client.
//!
//! Owns: the framing. `total_chunks` is the number of data chunks + 1, and the last chunk is always empty (an empty blob: two
//! empty chunks), which both a client that concatenates and pie-client 0.1.0, which stops one chunk early, read right.
//! Never: when a blob may be sent, or in which order.

use crate::identity::InstanceId;
use crate::limits;
use crate::wire::ServerMessage;
use std::sync::Arc;

/// The hash that names `blob` on the wire: of a large one elsewhere, for the io thread serves everyone.
pub async fn hash(blob: &Arc<[u8]>) -> blake3::Hash {
    match blob.len() {
        0..=limits::IO_THREAD_BYTES => blake3::hash(blob),
        _ => {
            let blob = blob.clone();
            smol::unblock(move || blake3::hash(&blob)).await
        }
    }
}

/// The frames of `blob`, made one at a time.
pub fn frames(instance: InstanceId, blob: &[u8], hash: blake3::Hash) -> impl Iterator<Item = ServerMessage> {
    let data_chunks = blob.len().div_ceil(limits::CHUNK_BYTES).max(1);
    (0..=data_chunks).map(move |index| {
        let from = (index * limits::CHUNK_BYTES).min(blob.len());
        // The chunk past the data is empty by the same rule.
        let to = (from + limits::CHUNK_BYTES).min(blob.len());
        ServerMessage::DownloadBlob {
            corr_id: 0,
            instance_id: instance.to_string(),
            blob_hash: hash.to_hex().to_string(),
            chunk_index: index as u64,
            total_chunks: data_chunks as u64 + 1,
            chunk_data: blob[from..to].to_vec(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_is_empty_and_the_rest_is_the_blob() {
        const CHUNK: usize = limits::CHUNK_BYTES;
        for (bytes, total) in [(0, 2), (1, 2), (CHUNK - 1, 2), (CHUNK, 2), (CHUNK + 1, 3), (3 * CHUNK, 4)] {
            let blob: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
            let mut joined = Vec::new();
            let mut sizes = Vec::new();
            for (at, frame) in frames(InstanceId::random(), &blob, blake3::hash(&blob)).enumerate() {
                let ServerMessage::DownloadBlob {
                    corr_id,
                    blob_hash,
                    chunk_index,
                    total_chunks,
                    chunk_data,
                    ..
                } = frame
                else {
                    panic!("another kind of frame");
                };
                assert_eq!((corr_id, chunk_index, total_chunks), (0, at as u64, total));
                assert_eq!(blob_hash, blake3::hash(&blob).to_hex().as_str());
                sizes.push(chunk_data.len());
                joined.extend(chunk_data);
            }
            assert_eq!(
                (joined == blob, sizes.len() as u64, sizes.last()),
                (true, total, Some(&0)),
                "{bytes} bytes"
            );
            assert!(sizes.iter().rev().skip(1).all(|&size| size > 0 || bytes == 0));
        }
    }
}
