//! Keeps key-value pairs and says of each write when it was acknowledged. The tests kill the server meanwhile, and look
//! at what is there afterwards.
//!
//! usage: ledger write NAME FROM [TO]
//!        ledger read NAME
//!
//! `write` makes the writes FROM, FROM + 1, … (up to TO, or without end) of the ledger NAME, each of which is a function
//! of its number: every fifth deletes a pair and the others set one, whose value is the number again and again. It sends
//! the number once a write is acknowledged. `read` sends each pair of that ledger, as `KEY VALUE`.

use inferlet::{Args, Result, api::kvs, bail, send};

/// Keys of one ledger, used in turn; prime, so that every one is deleted and set again.
const KEYS: u64 = 11;

#[inferlet::main]
async fn main(mut args: Args) -> Result<()> {
    let (what, name): (String, String) = (args.free_from_str()?, args.free_from_str()?);
    match what.as_str() {
        "write" => {
            let from: u64 = args.free_from_str()?;
            let to = args.opt_free_from_str()?.unwrap_or(u64::MAX);
            for number in from..to {
                let key = format!("{name}/{}", number % KEYS);
                if number % 5 == 4 {
                    kvs::store_delete(&key);
                } else {
                    kvs::store_set(&key, &value(number));
                }
                send(&number.to_string());
            }
        }
        "read" => {
            for key in kvs::store_list_keys() {
                if key.split_once('/').is_some_and(|(of, _)| of == name) {
                    let value = kvs::store_get(&key).expect("a key that is listed has a value");
                    send(&format!("{key} {value}"));
                }
            }
        }
        _ => bail!("there is no {what:?}: write or read"),
    }
    Ok(())
}

/// Between a few bytes and some pages of the file, all different.
fn value(number: u64) -> String {
    format!("{number},").repeat((number * 37 % 600) as usize + 1)
}
