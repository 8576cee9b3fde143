//! `litefs ltx`: looking into change sets, checking and applying them. Must not
//! touch a mount or an archive.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::ltx::inspect::{self, Summary, Target};
use crate::ltx::{Codec, Form};
use crate::sqlite;
use crate::words::{Checksum, PageSize};

use super::args::{Encoding, Ltx, LtxFiles};
use super::change_sets::{Found, find};
use super::destination::Destination;
use super::error::CliError;
use super::table;
use super::transfer::db_name;

/// The level of a file that is written once and kept.
const CONVERT_LEVEL: i32 = 9;

pub fn ltx(command: &Ltx) -> Result<(), CliError> {
    match command {
        Ltx::Dump(files) => dump(&found(files)?),
        Ltx::List(files) => list(&found(files)?),
        Ltx::Verify(files) => verify(&found(files)?),
        Ltx::Convert { output, encoding, tracked, force, file } => {
            let codec = match encoding {
                Encoding::Lz4 => Codec::Lz4,
                Encoding::Zstd => Codec::Zstd { level: CONVERT_LEVEL },
            };
            let target = if *tracked { Target::Tracked } else { Target::NoChecksum };
            let destination = Destination::new(output, *force)?;
            convert(&found(file)?, &destination, codec, target)?;
            destination.finish()
        }
        Ltx::Apply { db, files } => apply(db, &found(files)?),
    }
}

fn found(files: &LtxFiles) -> Result<Vec<Found>, CliError> {
    let db = files.name.as_deref().map(db_name).transpose()?;
    find(&files.files, db.as_ref())
}

fn about(label: &str) -> impl Fn(crate::ltx::LtxError) -> CliError {
    move |error| CliError::Failed(anyhow::anyhow!("{label}: {error}"))
}

fn dump(found: &[Found]) -> Result<(), CliError> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    for one in found {
        let (reader, size) = one.open()?;
        let mut pages = Vec::new();
        let shown = inspect::dump(reader, |page| {
            pages.push(vec![
                page.pgno.to_string(),
                page.compressed.to_string(),
                format!("{:016x}", page.sum.get()),
            ]);
        });
        let text = match &shown {
            Ok(summary) => header(summary, size),
            Err(_) => String::new(),
        };
        let pages = table::render(&["page", "bytes", "checksum"], &pages);
        write!(out, "{}\n{text}{pages}\n", one.label).map_err(CliError::io("printing"))?;
        if let Err(error) = shown {
            out.flush().map_err(CliError::io("printing"))?;
            return Err(about(&one.label)(error));
        }
    }
    out.flush().map_err(CliError::io("printing"))
}

fn header(summary: &Summary, size: u64) -> String {
    let header = &summary.header;
    let post = summary.trailer.post.map_or("none".to_owned(), |post| post.to_string());
    let wal = header.wal.as_ref().map_or(String::new(), |wal| {
        format!("wal         {} bytes from {}, salts {:08x?}\n", wal.size, wal.offset, wal.salt)
    });
    format!(
        "transactions {}-{}\ntime        {}\npage size   {}\ncommit      {} pages\npre         {}\n\
         post        {post}\nchecksums   {}\ncompressed  {}\nnode        {:016x}\n{wal}size        {size}\n\
         file        {:016x}\n",
        header.min,
        header.max,
        header.timestamp,
        header.page_size,
        header.commit,
        header.pre,
        form(&header.form),
        codec(&header.codec),
        header.node,
        summary.trailer.file_sum,
    )
}

fn form(form: &Form) -> &'static str {
    match form {
        Form::Tracked => "tracked",
        Form::NoChecksum { .. } => "carried (Litestream restores it)",
        Form::Untracked => "none (of Litestream)",
    }
}

fn codec(codec: &Codec) -> &'static str {
    match codec {
        Codec::Lz4 => "lz4",
        Codec::Zstd { .. } => "zstd",
    }
}

fn list(found: &[Found]) -> Result<(), CliError> {
    let mut rows = Vec::new();
    for one in found {
        let (reader, size) = one.open()?;
        let summary = inspect::list(reader, size).map_err(about(&one.label))?;
        rows.push(vec![
            one.label.clone(),
            summary.header.min.to_string(),
            summary.header.max.to_string(),
            summary.header.commit.to_string(),
            summary.pages.to_string(),
            size.to_string(),
            codec(&summary.header.codec).to_owned(),
            summary.header.timestamp.to_string(),
        ]);
    }
    print!(
        "{}",
        table::render(&["file", "first", "last", "commit", "pages", "bytes", "codec", "time"], &rows)
    );
    Ok(())
}

/// Checks each, and says of each what it found, before it fails.
fn verify(found: &[Found]) -> Result<(), CliError> {
    let mut bad = false;
    for one in found {
        let (reader, _) = one.open()?;
        match inspect::verify(reader) {
            Ok(summary) => println!("{}: ok, {} pages", one.label, summary.pages),
            Err(error) => {
                bad = true;
                println!("{}: {error}", one.label);
            }
        }
    }
    if bad { Err(CliError::Told(1)) } else { Ok(()) }
}

fn convert(found: &[Found], destination: &Destination, codec: Codec, target: Target) -> Result<(), CliError> {
    let [one] = found else {
        return Err(CliError::usage(format!(
            "{} change sets were named; convert takes one at a time",
            found.len()
        )));
    };
    let attempt = format!("writing {}", destination.temp().display());
    let file = File::create_new(destination.temp()).map_err(CliError::io(&attempt))?;
    let (reader, before) = one.open()?;
    let done = inspect::convert(reader, BufWriter::new(file), codec, target).map_err(about(&one.label))?;
    done.writer.into_inner().map_err(|error| CliError::io(&attempt)(error.into_error()))?;
    println!("{}: {} bytes, were {before}", one.label, done.size);
    Ok(())
}

fn apply(path: &Path, found: &[Found]) -> Result<(), CliError> {
    let attempt = || format!("opening {}", path.display());
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = open.map_err(CliError::io(attempt()))?;
    let (mut page_size, mut sum) = standing(&file, path)?;
    for one in found {
        let (reader, _) = one.open()?;
        let mut size = page_size;
        let summary = inspect::apply(BufReader::new(reader), sum, page_size, |pgno, data| {
            // Every page of a change set has its page size.
            let own = u32::try_from(data.len()).ok().and_then(|len| PageSize::new(len).ok());
            size = own.or(size);
            let offset = size.map_or(0, |size| size.offset_of(pgno));
            file.write_all_at(data, offset)
        });
        let summary = summary.map_err(|error| CliError::Failed(anyhow::anyhow!("{}: {error}", one.label)))?;
        let header = &summary.header;
        let len = u64::from(header.commit) * u64::from(header.page_size.get());
        file.set_len(len).map_err(CliError::io(format!("truncating {}", path.display())))?;
        page_size = Some(header.page_size);
        sum = standing_with(&file, header.page_size, path)?;
        if summary.trailer.post.is_some_and(|post| post != sum) {
            return Err(CliError::Failed(anyhow::anyhow!(
                "{}: after it {} has checksum {sum}, but should have {}: it was not what the change set is for",
                one.label,
                path.display(),
                summary.trailer.post.unwrap_or(Checksum::EMPTY)
            )));
        }
        println!("{}: applied, {} pages; the database is at {}/{sum}", one.label, summary.pages, header.max);
    }
    file.sync_all().map_err(CliError::io(format!("syncing {}", path.display())))
}

/// Page size and checksum of a database file; none and the empty one of an empty
/// file.
fn standing(file: &File, path: &Path) -> Result<(Option<PageSize>, Checksum), CliError> {
    let attempt = || format!("reading {}", path.display());
    if file.metadata().map_err(CliError::io(attempt()))?.len() == 0 {
        return Ok((None, Checksum::EMPTY));
    }
    let mut begin = Vec::new();
    let reading = file.try_clone().map_err(CliError::io(attempt()))?;
    reading.take(100).read_to_end(&mut begin).map_err(CliError::io(attempt()))?;
    let Some(header) = sqlite::header::Header::parse(&begin) else {
        return Err(CliError::Failed(anyhow::anyhow!("{} is no SQLite database", path.display())));
    };
    Ok((Some(header.page_size), standing_with(file, header.page_size, path)?))
}

fn standing_with(file: &File, page_size: PageSize, path: &Path) -> Result<Checksum, CliError> {
    let attempt = || format!("reading {}", path.display());
    let mut reading = file.try_clone().map_err(CliError::io(attempt()))?;
    std::io::Seek::rewind(&mut reading).map_err(CliError::io(attempt()))?;
    let summed = inspect::checksum_of(BufReader::with_capacity(1 << 20, reading), page_size);
    summed.map(|(_, sum)| sum).map_err(CliError::io(attempt()))
}
