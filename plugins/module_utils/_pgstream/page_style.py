# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The style of the status page. Colours are named once for light and once for dark, with contrasts of 4.5 or more."""

STYLE = """
:root{--page:#f4f5f7;--card:#fff;--line:#dfe3e8;--text:#1b2330;--dim:#566070;--good:#146c40;--good-soft:#e0f3e8;
--bad:#b3261e;--bad-soft:#fde8e6;--wait:#855100;--wait-soft:#fdf0d5;--none-soft:#e9ecf0;--bar:#4a78d6;--bar2:#8a6fc9}
@media (prefers-color-scheme:dark){:root{--page:#11151b;--card:#1a2029;--line:#2d3542;--text:#e7eaf0;--dim:#9fa9b8;
--good:#5bd197;--good-soft:#12331f;--bad:#ff9a92;--bad-soft:#431a18;--wait:#f0bf63;--wait-soft:#3b2c0c;
--none-soft:#2a313c;--bar:#6f9bf0;--bar2:#a78bea}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem clamp(1rem,4vw,2.5rem);max-width:90rem;background:var(--page);color:var(--text);
font:1rem/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
h1,h2,h3,p,dl,dd,figure{margin:0}
small{font-size:.85em;color:var(--dim);font-weight:400}
time small{white-space:nowrap}
header{display:flex;flex-wrap:wrap;gap:.25rem 1rem;align-items:baseline;margin-bottom:1rem}
header h1{font-size:1.15rem}
header p,footer{color:var(--dim);font-size:.9rem}
section{margin-bottom:2rem}
section>h2{font-size:1.1rem;margin-bottom:.75rem}
.state{display:flex;gap:1.1rem;padding:1.25rem 1.5rem;border-radius:.8rem;border:1px solid}
.state h2{font-size:clamp(1.25rem,3.5vw,1.7rem);line-height:1.25;margin-bottom:.3rem}
.state p{color:var(--text)}
.state small{color:inherit;opacity:.85}
.state.good{background:var(--good-soft);border-color:var(--good)}
.state.bad{background:var(--bad-soft);border-color:var(--bad)}
.state.wait{background:var(--wait-soft);border-color:var(--wait)}
.state.good h2,.state.good .mark{color:var(--good)}
.state.bad h2,.state.bad .mark{color:var(--bad)}
.state.wait h2,.state.wait .mark{color:var(--wait)}
.mark{flex:none;width:2.6rem;height:2.6rem;border:.16rem solid;border-radius:50%}
.mark svg{display:block;fill:none;stroke:currentColor;stroke-width:2.4;stroke-linecap:round;stroke-linejoin:round}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20.5rem),1fr));gap:1rem}
.card{display:grid;grid-template-columns:1fr auto;gap:.1rem .75rem;align-content:start;background:var(--card);
border:1px solid var(--line);border-radius:.8rem;padding:1rem 1.15rem}
.card.bad{border-color:var(--bad)}
.card h3{font-size:1rem;min-width:0}
.card>:not(h3,.pill){grid-column:1/-1}
.big{font-size:1.5rem;font-weight:600;line-height:1.3;margin-top:.4rem}
.big small{display:block;font-size:.85rem}
.sub{color:var(--dim);font-size:.85rem}
.why{margin-top:.5rem;padding:.5rem .7rem;border-radius:.5rem;background:var(--bad-soft);font-size:.9rem}
.pill{align-self:start;padding:.05rem .6rem;border-radius:1rem;font-size:.82rem;font-weight:600;white-space:nowrap;
background:var(--none-soft);color:var(--dim)}
.pill.good{background:var(--good-soft);color:var(--good)}
.pill.bad{background:var(--bad-soft);color:var(--bad)}
.pill.wait{background:var(--wait-soft);color:var(--wait)}
b.bad{color:var(--bad)}
.charts{display:grid;grid-template-columns:1fr 1fr;gap:1rem;margin-top:.9rem}
figure svg{display:block;width:100%;height:2.6rem;border-bottom:1px solid var(--line);fill:var(--bar)}
figure.duration svg{fill:var(--bar2)}
figure .f{fill:var(--bad)}
figcaption{display:flex;justify-content:space-between;gap:.5rem;font-size:.82rem;color:var(--dim);padding-top:.15rem}
dl{margin-top:.8rem;font-size:.9rem}
dl div{display:grid;grid-template-columns:7rem 1fr;gap:.5rem;padding:.22rem 0;border-top:1px solid var(--line)}
dt{color:var(--dim)}
table{width:100%;border-collapse:collapse;background:var(--card);border:1px solid var(--line);border-radius:.8rem;
font-size:.9rem;overflow:hidden}
th,td{text-align:left;vertical-align:top;padding:.5rem .75rem;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--dim);font-weight:600;font-size:.82rem}
td.num,th:nth-child(n+4):nth-child(-n+6){text-align:right;white-space:nowrap}
td time small{display:block}
td:nth-child(2){min-width:9rem}
td.said{min-width:16rem}
code{display:block;font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:var(--dim)}
.empty,.note{color:var(--dim)}
.empty{padding:2rem;text-align:center;background:var(--card);border:1px dashed var(--line);border-radius:.8rem}
.note{margin-top:.5rem;font-size:.85rem}
footer{display:flex;flex-wrap:wrap;gap:.25rem 1.5rem;border-top:1px solid var(--line);padding-top:1rem}
a{color:inherit}
a:focus-visible{outline:2px solid var(--bar);outline-offset:2px}
@media (max-width:56rem){
table,tbody,tr,td{display:block;width:auto}
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table{background:none;border:0;border-radius:0}
tr{background:var(--card);border:1px solid var(--line);border-radius:.8rem;padding:.6rem .9rem;margin-bottom:.75rem}
td,td.num{border:0;padding:.12rem 0;text-align:left;white-space:normal;display:grid;grid-template-columns:6.5rem 1fr;
gap:.5rem}
td::before{content:attr(data-name);color:var(--dim)}
td .pill{justify-self:start}
td.said{grid-template-columns:1fr;padding-top:.3rem}
td.said::before,td.void{display:none}
td time small{display:inline}
}
@media (max-width:30rem){.state{flex-direction:column;gap:.6rem;padding:1rem}.state p{font-size:.95rem}}
@media print{body{background:none}.card,tr{break-inside:avoid}}
"""
