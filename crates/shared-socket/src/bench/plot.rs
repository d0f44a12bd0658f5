//! A picture of the results: a bar for each path, as long as it is better than TCP.

use std::path::{Path as FilePath, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum as _;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, register_font};

use super::matrix::Path;
use super::report::{Results, Row, figure};

/// The kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Vectors; needs no font here.
    Svg,
    /// Pixels; needs a font of this system.
    Png,
}

/// A file to draw to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    file: PathBuf,
    format: Format,
}

const WIDTH: u32 = 1000;
const TOP: i32 = 80;
const BOTTOM: i32 = 16;
const LEFT: i32 = 250;
const RIGHT: i32 = 190;
const BAR: i32 = 15;
const GAP: i32 = 12;
const FONT: &str = "sans-serif";
/// Fonts that distributions put in these places.
const FONTS: [&str; 6] = [
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
    "/usr/share/fonts/truetype/liberation2/LiberationSans-Regular.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/freefont/FreeSans.ttf",
];

impl std::str::FromStr for Picture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let file = PathBuf::from(text);
        let format = match file.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            _ => return Err("a picture is a .svg or a .png file".into()),
        };
        Ok(Self { file, format })
    }
}

impl Picture {
    /// Fails early when the picture could not be drawn after a long measurement.
    pub fn check(&self) -> Result<()> {
        if self.format == Format::Png {
            font()?;
        }
        let directory = self.file.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(FilePath::new("."));
        if !directory.is_dir() {
            bail!(
                "cannot draw {}: {} is not a directory; make it, or give another --plot",
                self.file.display(),
                directory.display()
            );
        }
        Ok(())
    }

    /// Draws.
    pub fn draw(&self, results: &Results) -> Result<()> {
        let groups = groups(results);
        if groups.is_empty() {
            bail!("nothing to draw in {}: no cell was measured by tcp and by another path", self.file.display());
        }
        let size = (WIDTH, height(&groups) as u32);
        match self.format {
            Format::Svg => paint(&SVGBackend::new(&self.file, size).into_drawing_area(), results, &groups),
            Format::Png => {
                register_font(FONT, FontStyle::Normal, font()?)
                    .map_err(|_| anyhow!("the system's font is not one that can be read"))?;
                paint(&BitMapBackend::new(&self.file, size).into_drawing_area(), results, &groups)
            }
        }
        .with_context(|| format!("cannot draw {}", self.file.display()))
    }
}

/// A font of this system, kept for the life of the process: that is what the drawing library asks for.
fn font() -> Result<&'static [u8]> {
    let bytes = FONTS.iter().find_map(|path| std::fs::read(path).ok()).ok_or_else(|| {
        anyhow!("a .png needs a font and none of the known ones is here; install fonts-dejavu-core, or draw a .svg")
    })?;
    Ok(Vec::leak(bytes))
}

/// The bars of one cell.
struct Group<'a> {
    rows: Vec<(&'a Row, f64)>,
}

/// How many times better than TCP: for a time, TCP's over this one's.
fn gain(row: &Row) -> Option<f64> {
    let ratio = row.ratio_to_tcp.filter(|ratio| *ratio > 0.0 && row.path != Path::Tcp)?;
    Some(if row.unit.less_is_better() { 1.0 / ratio } else { ratio })
}

fn groups(results: &Results) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (row, gain) in results.rows.iter().filter_map(|row| Some((row, gain(row)?))) {
        match groups.last_mut() {
            Some(Group { rows })
                if (rows[0].0.case, rows[0].0.size, rows[0].0.placement) == (row.case, row.size, row.placement) =>
            {
                rows.push((row, gain));
            }
            _ => groups.push(Group { rows: vec![(row, gain)] }),
        }
    }
    groups
}

fn height(groups: &[Group<'_>]) -> i32 {
    TOP + BOTTOM + groups.iter().map(|group| group.rows.len() as i32 * BAR + GAP).sum::<i32>()
}

fn color(path: Path) -> RGBColor {
    match path {
        Path::Tcp => RGBColor(120, 120, 120),
        Path::Fast => RGBColor(0, 114, 178),
        Path::Uds => RGBColor(0, 158, 115),
        Path::Tuple => RGBColor(230, 159, 0),
        Path::Captured => RGBColor(204, 121, 167),
        Path::Requests => RGBColor(86, 180, 233),
    }
}

fn text(size: i32, color: RGBColor, horizontal: HPos) -> TextStyle<'static> {
    TextStyle {
        font: (FONT, size).into_font(),
        color: color.to_backend_color(),
        pos: Pos::new(horizontal, VPos::Center),
    }
}

fn paint<B: DrawingBackend>(area: &DrawingArea<B, Shift>, results: &Results, groups: &[Group<'_>]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let gray = RGBColor(90, 90, 90);
    let machine = &results.machine;
    let bottom = height(groups) - BOTTOM;
    area.fill(&WHITE)?;
    let write = |words: String, size: i32, color: RGBColor, side: HPos, at: (i32, i32)| {
        area.draw(&Text::new(words, at, text(size, color, side)))
    };
    write("Times better than TCP (latency and rate alike; longer is better)".into(), 18, BLACK, HPos::Left, (16, 22))?;
    let where_ = format!("Linux {} {}, {} CPUs, {}", machine.kernel, machine.architecture, machine.cpus, machine.model);
    write(where_, 12, gray, HPos::Left, (16, 44))?;
    let is_drawn = |path: Path| groups.iter().any(|group| group.rows.iter().any(|(row, _)| row.path == path));
    let drawn: Vec<Path> = Path::value_variants().iter().copied().filter(|path| is_drawn(*path)).collect();
    let mut x = WIDTH as i32 - 30 - 90 * drawn.len() as i32;
    for path in drawn {
        area.draw(&Rectangle::new([(x, 16), (x + 12, 28)], color(path).filled()))?;
        write(path.to_string(), 13, BLACK, HPos::Left, (x + 18, 22))?;
        x += 90;
    }
    let most = groups.iter().flat_map(|group| &group.rows).map(|(_, gain)| *gain).fold(1.0, f64::max);
    let scale = f64::from(WIDTH as i32 - LEFT - RIGHT) / most;
    let at = |gain: f64| LEFT + (gain * scale).round() as i32;
    let mut y = TOP;
    for Group { rows } in groups {
        let middle = y + rows.len() as i32 * BAR / 2;
        let head = rows[0].0;
        let name = format!("{} {}, {}", head.case, head.case.size_label(head.size), head.placement);
        write(name, 13, BLACK, HPos::Right, (LEFT - 10, middle))?;
        for (row, gain) in rows {
            area.draw(&Rectangle::new([(LEFT, y + 1), (at(*gain), y + BAR - 1)], color(row.path).filled()))?;
            let median = row.median.map(figure).unwrap_or_default();
            let value = format!("{gain:.2} x   {median} {}", row.unit);
            write(value, 12, if row.is_broken() { RED } else { gray }, HPos::Left, (at(*gain) + 6, y + BAR / 2))?;
            y += BAR;
        }
        y += GAP;
    }
    area.draw(&PathElement::new([(at(1.0), TOP - 6), (at(1.0), bottom)], BLACK.stroke_width(1)))?;
    write("TCP".into(), 12, BLACK, HPos::Center, (at(1.0), TOP - 13))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{Case, Cell, Placement};
    use super::super::report::Machine;
    use super::super::runner::Sample;
    use super::*;

    fn results() -> Results {
        let row = |case, size, path, value| {
            let cell = Cell { case, size, placement: Placement::OneCore, paths: vec![] };
            Row::new(&cell, path, &[Sample { value, fast: 1, ..Sample::default() }], &[])
        };
        Results::new(
            Machine { kernel: "6.18".into(), architecture: "x86_64".into(), cpus: 2, model: "m".into() },
            vec![
                row(Case::Pingpong, 64, Path::Tcp, 30.0),
                row(Case::Pingpong, 64, Path::Fast, 10.0),
                row(Case::Stream, 65536, Path::Tcp, 10.0),
                row(Case::Stream, 65536, Path::Fast, 15.0),
                row(Case::Stream, 65536, Path::Uds, 20.0),
            ],
        )
    }

    #[test]
    fn a_gain_is_a_gain_for_times_and_for_rates() {
        let results = results();
        let gains: Vec<Option<f64>> = results.rows.iter().map(gain).collect();
        assert_eq!(gains[0], None);
        assert!((gains[1].unwrap() - 3.0).abs() < 1e-9 && (gains[3].unwrap() - 1.5).abs() < 1e-9);
        assert_eq!(groups(&results).len(), 2);
    }

    #[test]
    fn an_svg_is_drawn_with_its_text() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.svg");
        let picture: Picture = file.to_str().unwrap().parse().unwrap();
        picture.check().unwrap();
        picture.draw(&results()).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains("stream 64 KiB, one-core") && text.contains("3.00 x"), "{text}");
    }

    #[test]
    fn a_picture_is_svg_or_png_in_a_directory() {
        assert!("a.jpg".parse::<Picture>().is_err());
        assert!(
            "/nowhere/at/all.svg"
                .parse::<Picture>()
                .unwrap()
                .check()
                .unwrap_err()
                .to_string()
                .contains("is not a directory")
        );
        assert_eq!("a.PNG".parse::<Picture>().unwrap().format, Format::Png);
    }
}
