"""The table of real facts: six relations, each a map from a key to its one value.

A relation is functional: a key has exactly one value, so another value for the same key is false. Where
`one_to_one` holds the reverse is true as well. The table serves evaluation and the demo only. Training
takes the *names* from here and pairs them at random, and `Relation.is_true` is how it makes sure that no
true pair slips in. How facts are worded lives in `patterns.py`, invented names in `names.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Fact(NamedTuple):
    """One pair of one relation, true or not."""

    relation: str
    key: str
    value: str


@dataclass(frozen=True)
class Relation:
    """A named relation: what its keys and values are, and which pairs are true."""

    name: str
    key_kind: str
    value_kind: str
    one_to_one: bool
    pairs: dict[str, str]
    values: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the distinct values, in the order of the table."""
        object.__setattr__(self, "values", tuple(dict.fromkeys(self.pairs.values())))

    def is_true(self, key: str, value: str) -> bool:
        """Whether the table says that `key` has `value`."""
        return self.pairs.get(key) == value

    def facts(self) -> list[Fact]:
        """Every true pair of this relation."""
        return [Fact(self.name, key, value) for key, value in self.pairs.items()]


def _pairs(text: str) -> dict[str, str]:
    """Read `key: value; key: value` into a map; a key given twice is a mistake in the table."""
    pairs: dict[str, str] = {}
    for entry in text.replace("\n", " ").split(";"):
        key, value = (part.strip() for part in entry.split(":"))
        if key in pairs:
            raise ValueError(f"key given twice: {key}")
        pairs[key] = value
    return pairs


# Left out: countries whose capital and seat of government differ or are disputed.
_CAPITALS = _pairs("""
Austria: Vienna; Belgium: Brussels; Bulgaria: Sofia; Croatia: Zagreb; Cyprus: Nicosia; Denmark: Copenhagen;
Estonia: Tallinn; Finland: Helsinki; France: Paris; Germany: Berlin; Greece: Athens; Hungary: Budapest;
Iceland: Reykjavik; Ireland: Dublin; Italy: Rome; Latvia: Riga; Lithuania: Vilnius; Malta: Valletta;
Norway: Oslo; Poland: Warsaw; Portugal: Lisbon; Romania: Bucharest; Serbia: Belgrade; Slovakia: Bratislava;
Slovenia: Ljubljana; Spain: Madrid; Sweden: Stockholm; Ukraine: Kyiv; Belarus: Minsk; Moldova: Chisinau;
Albania: Tirana; Armenia: Yerevan; Azerbaijan: Baku; Turkey: Ankara; Russia: Moscow; Egypt: Cairo;
Morocco: Rabat; Algeria: Algiers; Tunisia: Tunis; Libya: Tripoli; Sudan: Khartoum; Ethiopia: Addis Ababa;
Kenya: Nairobi; Uganda: Kampala; Rwanda: Kigali; Ghana: Accra; Nigeria: Abuja; Senegal: Dakar; Mali: Bamako;
Zambia: Lusaka; Zimbabwe: Harare; Angola: Luanda; Namibia: Windhoek; Botswana: Gaborone; Mozambique: Maputo;
Madagascar: Antananarivo; Somalia: Mogadishu; Iraq: Baghdad; Iran: Tehran; Jordan: Amman; Lebanon: Beirut;
Syria: Damascus; Oman: Muscat; Qatar: Doha; Pakistan: Islamabad; Nepal: Kathmandu; Bhutan: Thimphu;
Bangladesh: Dhaka; Japan: Tokyo; Thailand: Bangkok; Vietnam: Hanoi; Laos: Vientiane; Cambodia: Phnom Penh;
Mongolia: Ulaanbaatar; Uzbekistan: Tashkent; Georgia: Tbilisi; Canada: Ottawa; Cuba: Havana;
Jamaica: Kingston; Peru: Lima; Colombia: Bogota; Ecuador: Quito; Argentina: Buenos Aires; Brazil: Brasilia;
Uruguay: Montevideo; Venezuela: Caracas; Australia: Canberra; Fiji: Suva; Costa Rica: San Jose;
Honduras: Tegucigalpa; Nicaragua: Managua
""")

_CURRENCIES = _pairs("""
Japan: yen; India: rupee; Pakistan: rupee; Nepal: rupee; China: yuan; Russia: ruble; Belarus: ruble;
Poland: zloty; Hungary: forint; Denmark: krone; Norway: krone; Sweden: krona; Iceland: krona; Romania: leu;
Moldova: leu; Serbia: dinar; Algeria: dinar; Tunisia: dinar; Jordan: dinar; Iraq: dinar; Turkey: lira;
Switzerland: franc; Rwanda: franc; Thailand: baht; Vietnam: dong; Laos: kip; Cambodia: riel;
Mongolia: tugrik; Bangladesh: taka; Bhutan: ngultrum; Iran: rial; Oman: rial; Qatar: riyal; Israel: shekel;
Egypt: pound; Morocco: dirham; Ethiopia: birr; Kenya: shilling; Uganda: shilling; Ghana: cedi;
Nigeria: naira; Zambia: kwacha; Malawi: kwacha; Angola: kwanza; Botswana: pula; Mozambique: metical;
Madagascar: ariary; Canada: dollar; Australia: dollar; Jamaica: dollar; Fiji: dollar; Mexico: peso;
Argentina: peso; Colombia: peso; Cuba: peso; Uruguay: peso; Peru: sol; Brazil: real; Bolivia: boliviano;
Paraguay: guarani; Honduras: lempira; Guatemala: quetzal; France: euro; Germany: euro; Italy: euro;
Spain: euro; Austria: euro; Ireland: euro; Finland: euro; Greece: euro; Portugal: euro; Ukraine: hryvnia;
Georgia: lari; Armenia: dram; Azerbaijan: manat; Albania: lek; Uzbekistan: som; Kazakhstan: tenge;
Indonesia: rupiah; Malaysia: ringgit
""")

_RIVERS = _pairs("""
London: Thames; Paris: Seine; Vienna: Danube; Budapest: Danube; Bratislava: Danube; Rome: Tiber;
Florence: Arno; Pisa: Arno; Turin: Po; Verona: Adige; Cologne: Rhine; Bonn: Rhine; Basel: Rhine;
Mainz: Rhine; Hamburg: Elbe; Dresden: Elbe; Magdeburg: Elbe; Bremen: Weser; Frankfurt: Main; Munich: Isar;
Prague: Vltava; Warsaw: Vistula; Krakow: Vistula; Wroclaw: Oder; Bordeaux: Garonne; Toulouse: Garonne;
Nantes: Loire; Orleans: Loire; Tours: Loire; Rouen: Seine; Avignon: Rhone; Arles: Rhone; Geneva: Rhone;
Bern: Aare; Zurich: Limmat; Innsbruck: Inn; Salzburg: Salzach; Graz: Mur; Ljubljana: Ljubljanica;
Zagreb: Sava; Sarajevo: Miljacka; Skopje: Vardar; Lisbon: Tagus; Toledo: Tagus; Porto: Douro;
Seville: Guadalquivir; Zaragoza: Ebro; Dublin: Liffey; Cork: Lee; Glasgow: Clyde; Newcastle: Tyne;
Liverpool: Mersey; Cardiff: Taff; Kyiv: Dnieper; Riga: Daugava; Kaunas: Neman; Moscow: Moskva;
Saint Petersburg: Neva; Volgograd: Volga; Kazan: Volga; Omsk: Irtysh; Novosibirsk: Ob; Cairo: Nile;
Luxor: Nile; Baghdad: Tigris; Mosul: Tigris; Varanasi: Ganges; Patna: Ganges; Delhi: Yamuna; Agra: Yamuna;
Wuhan: Yangtze; Nanjing: Yangtze; Bangkok: Chao Phraya; Vientiane: Mekong; Seoul: Han; Osaka: Yodo;
Bamako: Niger; Niamey: Niger; Memphis: Mississippi; Minneapolis: Mississippi; Cincinnati: Ohio;
Louisville: Ohio; Washington: Potomac; Philadelphia: Delaware; Albany: Hudson; Montreal: Saint Lawrence;
Melbourne: Yarra; Perth: Swan; Adelaide: Torrens
""")

# Titles that name both a book and a piece of music are in neither table.
_AUTHORS = _pairs("""
Emma: Jane Austen; Persuasion: Jane Austen; Mansfield Park: Jane Austen; Oliver Twist: Charles Dickens;
Bleak House: Charles Dickens; Little Dorrit: Charles Dickens; Middlemarch: George Eliot;
Dracula: Bram Stoker; Frankenstein: Mary Shelley; Ulysses: James Joyce; Dubliners: James Joyce;
War and Peace: Leo Tolstoy; Anna Karenina: Leo Tolstoy; Crime and Punishment: Fyodor Dostoevsky;
The Idiot: Fyodor Dostoevsky; Dead Souls: Nikolai Gogol; Fathers and Sons: Ivan Turgenev;
The Cherry Orchard: Anton Chekhov; The Trial: Franz Kafka; The Castle: Franz Kafka;
The Magic Mountain: Thomas Mann; Buddenbrooks: Thomas Mann; Siddhartha: Hermann Hesse;
Steppenwolf: Hermann Hesse; Madame Bovary: Gustave Flaubert; The Stranger: Albert Camus;
The Plague: Albert Camus; Don Quixote: Miguel de Cervantes; The Divine Comedy: Dante Alighieri;
The Decameron: Giovanni Boccaccio; The Name of the Rose: Umberto Eco; Hamlet: William Shakespeare;
King Lear: William Shakespeare; Paradise Lost: John Milton; Gulliver's Travels: Jonathan Swift;
Robinson Crusoe: Daniel Defoe; Ivanhoe: Walter Scott; Treasure Island: Robert Louis Stevenson;
Kidnapped: Robert Louis Stevenson; Heart of Darkness: Joseph Conrad; Lord Jim: Joseph Conrad;
Animal Farm: George Orwell; Brave New World: Aldous Huxley; Lord of the Flies: William Golding;
Mrs Dalloway: Virginia Woolf; Orlando: Virginia Woolf; Walden: Henry David Thoreau;
The Scarlet Letter: Nathaniel Hawthorne; Leaves of Grass: Walt Whitman; The Call of the Wild: Jack London;
White Fang: Jack London; Of Mice and Men: John Steinbeck; East of Eden: John Steinbeck;
The Sound and the Fury: William Faulkner; Beloved: Toni Morrison; Invisible Man: Ralph Ellison;
Things Fall Apart: Chinua Achebe; Midnight's Children: Salman Rushdie; Kim: Rudyard Kipling;
Rebecca: Daphne du Maurier; Dune: Frank Herbert; Neuromancer: William Gibson; Solaris: Stanislaw Lem;
Foundation: Isaac Asimov; Fahrenheit 451: Ray Bradbury; A Doll's House: Henrik Ibsen; Hunger: Knut Hamsun;
Pygmalion: George Bernard Shaw; Waiting for Godot: Samuel Beckett
""")

_COMPOSERS = _pairs("""
The Four Seasons: Antonio Vivaldi; The Magic Flute: Wolfgang Amadeus Mozart;
Don Giovanni: Wolfgang Amadeus Mozart; Fidelio: Ludwig van Beethoven; Messiah: George Frideric Handel;
The Creation: Joseph Haydn; Swan Lake: Pyotr Tchaikovsky; The Nutcracker: Pyotr Tchaikovsky;
Pictures at an Exhibition: Modest Mussorgsky; Khovanshchina: Modest Mussorgsky;
Scheherazade: Nikolai Rimsky-Korsakov; Prince Igor: Alexander Borodin; The Rite of Spring: Igor Stravinsky;
Petrushka: Igor Stravinsky; The Firebird: Igor Stravinsky; Peter and the Wolf: Sergei Prokofiev;
Carmen: Georges Bizet; Bolero: Maurice Ravel; La Mer: Claude Debussy; Symphonie fantastique: Hector Berlioz;
Aida: Giuseppe Verdi; Rigoletto: Giuseppe Verdi; Nabucco: Giuseppe Verdi; Tosca: Giacomo Puccini;
Turandot: Giacomo Puccini; Madama Butterfly: Giacomo Puccini; William Tell: Gioachino Rossini;
Norma: Vincenzo Bellini; The Elixir of Love: Gaetano Donizetti; Parsifal: Richard Wagner;
Lohengrin: Richard Wagner; Elektra: Richard Strauss; Finlandia: Jean Sibelius; The Planets: Gustav Holst;
Enigma Variations: Edward Elgar; Dido and Aeneas: Henry Purcell; Peter Grimes: Benjamin Britten;
War Requiem: Benjamin Britten; Appalachian Spring: Aaron Copland; Rhapsody in Blue: George Gershwin;
Porgy and Bess: George Gershwin; West Side Story: Leonard Bernstein; The Bartered Bride: Bedrich Smetana;
Rusalka: Antonin Dvorak; Jenufa: Leos Janacek; Duke Bluebeard's Castle: Bela Bartok;
Carmina Burana: Carl Orff; Wozzeck: Alban Berg; Lulu: Alban Berg; Pierrot Lunaire: Arnold Schoenberg;
Winterreise: Franz Schubert; Carnaval: Robert Schumann; Elijah: Felix Mendelssohn;
The Art of Fugue: Johann Sebastian Bach; Orpheus in the Underworld: Jacques Offenbach;
Goyescas: Enrique Granados; Iberia: Isaac Albeniz; Orfeo ed Euridice: Christoph Willibald Gluck;
Hansel and Gretel: Engelbert Humperdinck; Einstein on the Beach: Philip Glass
""")

_SYMBOLS = _pairs("""
hydrogen: H; helium: He; lithium: Li; beryllium: Be; boron: B; carbon: C; nitrogen: N; oxygen: O;
fluorine: F; neon: Ne; sodium: Na; magnesium: Mg; aluminium: Al; silicon: Si; phosphorus: P; sulfur: S;
chlorine: Cl; argon: Ar; potassium: K; calcium: Ca; scandium: Sc; titanium: Ti; vanadium: V; chromium: Cr;
manganese: Mn; iron: Fe; cobalt: Co; nickel: Ni; copper: Cu; zinc: Zn; gallium: Ga; germanium: Ge;
arsenic: As; selenium: Se; bromine: Br; krypton: Kr; rubidium: Rb; strontium: Sr; yttrium: Y; zirconium: Zr;
niobium: Nb; molybdenum: Mo; technetium: Tc; ruthenium: Ru; rhodium: Rh; palladium: Pd; silver: Ag;
cadmium: Cd; indium: In; tin: Sn; antimony: Sb; tellurium: Te; iodine: I; xenon: Xe; caesium: Cs;
barium: Ba; lanthanum: La; cerium: Ce; neodymium: Nd; samarium: Sm; europium: Eu; terbium: Tb; hafnium: Hf;
tantalum: Ta; tungsten: W; rhenium: Re; osmium: Os; iridium: Ir; platinum: Pt; gold: Au; mercury: Hg;
thallium: Tl; lead: Pb; bismuth: Bi; polonium: Po; radon: Rn; radium: Ra; thorium: Th; uranium: U;
plutonium: Pu
""")

RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation("capital", "country", "city", one_to_one=True, pairs=_CAPITALS),
        Relation("currency", "country", "currency", one_to_one=False, pairs=_CURRENCIES),
        Relation("river", "city", "river", one_to_one=False, pairs=_RIVERS),
        Relation("author", "book", "person", one_to_one=False, pairs=_AUTHORS),
        Relation("composer", "music", "person", one_to_one=False, pairs=_COMPOSERS),
        Relation("symbol", "element", "symbol", one_to_one=True, pairs=_SYMBOLS),
    )
}


def all_facts() -> list[Fact]:
    """Every true pair of every relation."""
    return [fact for relation in RELATIONS.values() for fact in relation.facts()]
