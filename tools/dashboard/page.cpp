// The page's shell. Colours are Okabe and Ito's, darkened or lightened for contrast with either background; shapes
// repeat what colours say.
#include "tools/dashboard/page.h"

#include <fmt/format.h>

#include "tools/dashboard/charts.h"
#include "tools/dashboard/text.h"

namespace thimble::dashboard {
namespace {

constexpr char kStyle[] = R"CSS(
:root{--bg:#fafaf8;--card:#fff;--ink:#1b1f24;--soft:#59626e;--line:#dfe2e6;--grid:#eceef1;--band:#eef1f4;--link:#005b96;
--c0:#6b7280;--c1:#0072b2;--c2:#c84e00;--c3:#a3428c;--c4:#00805c;--c5:#a87400;--c6:#3a8fc4;--c7:#7a5230;
--yes:#00694b;--yesb:#e0f3ec;--no:#b03a00;--nob:#fdeae0;--open:#5b5f66;--openb:#eeeff1;--on:#fff;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1c2026;--ink:#e8eaed;--soft:#a3acb8;--line:#343a43;--grid:#2a2f37;--band:#272c33;--link:#7cc4f5;
--c0:#9aa4b2;--c1:#56b4e9;--c2:#ff8f57;--c3:#e09ad0;--c4:#3ccb9a;--c5:#f0c24b;--c6:#a5d8f7;--c7:#cfa683;
--yes:#5fdcb0;--yesb:#16352b;--no:#ff9a6b;--nob:#3d2317;--open:#b9c0c9;--openb:#2a2f36;--on:#0d1116}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:27px;line-height:1.2;margin:0 0 4px}h2{font-size:20px;margin:44px 0 4px;line-height:1.3}h3{font-size:15px;margin:0;line-height:1.35}h3::first-letter{text-transform:uppercase}
p{margin:4px 0 10px;max-width:76ch}a{color:var(--link)}.soft{color:var(--soft)}.small{font-size:13px}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:14px 0 0;font-size:14px}
.facts{display:flex;flex-wrap:wrap;gap:10px 30px;margin:16px 0 4px;padding:0}.facts div{min-width:86px}
.facts b{display:block;font-size:21px;line-height:1.2;font-variant-numeric:tabular-nums}.facts span{font-size:13px;color:var(--soft)}
.warn{border-left:4px solid var(--c5);padding:6px 12px;background:var(--card);margin:12px 0;max-width:90ch}
.board{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:16px;margin-top:12px;align-items:start}
.card,.panel{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px;min-width:0}
.card{display:flex;flex-direction:column;gap:8px}
.card p{margin:0}.card .claim{font-weight:600;font-size:16px;line-height:1.35}.card .top{display:flex;gap:10px;align-items:center;font-size:13px;color:var(--soft)}
.badge{font-weight:700;font-size:13px;padding:2px 10px;border-radius:99px;letter-spacing:.01em}
.badge.supported{color:var(--yes);background:var(--yesb)}.badge.refuted{color:var(--no);background:var(--nob)}
.badge.inconclusive,.badge.nodata{color:var(--open);background:var(--openb)}
.effect{font-variant-numeric:tabular-nums;font-size:14px;font-weight:600}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,345px),1fr));gap:14px;margin-top:10px;align-items:start}
.panel .sub{font-size:12.5px;color:var(--soft);margin:1px 0 6px}
svg{display:block;width:100%;max-width:470px;height:auto;overflow:visible;font-size:11px}
svg text{fill:var(--ink);font-variant-numeric:tabular-nums;paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}svg .e{text-anchor:end}svg .m{text-anchor:middle}
svg .ax,svg .mk{fill:var(--soft)}svg .mk{font-size:10px}svg .sl{font-size:10px}svg .v{font-weight:600}svg .on{fill:var(--on)}svg .hv{stroke:none}
svg .grid{stroke:var(--grid)}svg .zero{stroke:var(--soft);stroke-width:1.2}svg .mark{stroke:var(--soft);stroke-dasharray:3 3;fill:none}
svg .band{fill:var(--band)}svg .ci{stroke-width:2.4;stroke-linecap:round;fill:none}svg .ci.thin{stroke-width:1.3;opacity:.6}svg .ln{fill:none;stroke-width:2}
svg .front{fill:none;stroke:var(--soft);stroke-width:1.2;stroke-dasharray:1 3;stroke-linecap:round}svg .ht{fill:var(--c1)}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}.s6{stroke:var(--c6)}.s7{stroke:var(--c7)}
.k.s0{fill:var(--c0)}.k.s1{fill:var(--c1)}.k.s2{fill:var(--c2)}.k.s3{fill:var(--c3)}.k.s4{fill:var(--c4)}.k.s5{fill:var(--c5)}.k.s6{fill:var(--c6)}.k.s7{fill:var(--c7)}
.k.o{fill:var(--card);stroke-width:2}
svg .t0{fill:var(--c0)}svg .t1{fill:var(--c1)}svg .t2{fill:var(--c2)}svg .t3{fill:var(--c3)}svg .t4{fill:var(--c4)}svg .t5{fill:var(--c5)}svg .t6{fill:var(--c6)}svg .t7{fill:var(--c7)}
[data-t]{cursor:default}svg [data-t]:hover{filter:brightness(1.25)}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--bg);padding:5px 9px;border-radius:5px;font-size:13px;line-height:1.4;white-space:pre-line;max-width:300px;display:none}
.wrap{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;margin-top:8px}
.tall{max-height:640px;overflow-y:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:left;border-bottom:1px solid var(--grid);white-space:nowrap}td.w{white-space:normal;min-width:150px}
th{position:sticky;top:0;background:var(--card);cursor:pointer;color:var(--soft);font-weight:600;box-shadow:0 1px 0 var(--line);user-select:none}
th[aria-sort=ascending]::after{content:" ▲";font-size:9px}th[aria-sort=descending]::after{content:" ▼";font-size:9px}
td.n,th.n{text-align:right}tr:last-child td{border-bottom:0}
td[style]{background:linear-gradient(to right,var(--c6) var(--b),var(--grid) var(--b)) 8px calc(100% - 2px)/calc(100% - 16px) 2px no-repeat;padding-bottom:8px}
details{font-size:14px;min-width:0}summary{cursor:pointer;color:var(--link);font-size:13px}details p{font-size:13px;margin:6px 0}
input[type=search]{font:inherit;font-size:14px;padding:5px 10px;width:min(100%,340px);border:1px solid var(--line);border-radius:6px;background:var(--card);color:var(--ink);margin-top:8px}
ul{margin:6px 0;padding-left:20px;max-width:90ch}li{margin:3px 0}
@media(max-width:560px){main{padding:16px 12px 40px}h1{font-size:23px}.card,.panel{padding:12px}}
@media print{.wrap{max-height:none;overflow:visible}nav,input{display:none}.card,.panel{break-inside:avoid}}
)CSS";

constexpr char kScript[] = R"JS(
(function(){
var tip=document.getElementById('tip');
function show(e){var t=e.target.closest&&e.target.closest('[data-t]');if(!t){tip.style.display='none';return}
tip.textContent=t.getAttribute('data-t');tip.style.display='block';
var w=tip.offsetWidth,h=tip.offsetHeight,x=e.clientX+14,y=e.clientY+14;
if(x+w>innerWidth-8)x=Math.max(8,e.clientX-w-14);if(y+h>innerHeight-8)y=Math.max(8,e.clientY-h-14);
tip.style.left=x+'px';tip.style.top=y+'px'}
document.addEventListener('pointermove',show);document.addEventListener('pointerdown',show);
document.addEventListener('scroll',function(){tip.style.display='none'},true);
function sort(th){
var table=th.closest('table'),body=table.tBodies[0],i=th.cellIndex,n=th.classList.contains('n');
var up=th.getAttribute('aria-sort')?th.getAttribute('aria-sort')!=='ascending':!n;
table.querySelectorAll('th').forEach(function(h){h.removeAttribute('aria-sort')});
th.setAttribute('aria-sort',up?'ascending':'descending');
function v(r){var c=r.cells[i],s=c.getAttribute('data-v');return s===null?c.textContent:s}
Array.from(body.rows).map(function(r,k){return[r,v(r),k]}).sort(function(a,b){var d;
if(n){var x=parseFloat(a[1]),y=parseFloat(b[1]);if(isNaN(x)||isNaN(y))return(isNaN(x)-isNaN(y))||a[2]-b[2];d=x-y}
else d=a[1]<b[1]?-1:a[1]>b[1]?1:0;return(up?d:-d)||a[2]-b[2]}).forEach(function(x){body.appendChild(x[0])})}
document.addEventListener('click',function(e){var th=e.target.closest&&e.target.closest('th');if(th)sort(th)});
document.addEventListener('keydown',function(e){if(e.key==='Enter'&&e.target.tagName==='TH')sort(e.target)});
document.querySelectorAll('input[data-for]').forEach(function(box){box.addEventListener('input',function(){
var words=box.value.toLowerCase().split(/\s+/),rows=document.getElementById(box.getAttribute('data-for')).tBodies[0].rows;
for(var i=0;i<rows.length;i++){var t=rows[i].textContent.toLowerCase();rows[i].hidden=!words.every(function(w){return t.indexOf(w)>=0})}})});
})();
)JS";

}  // namespace

std::string page(const std::string& title, const std::string& body, const std::string& style, const std::string& script) {
  return "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
         "content=\"width=device-width,initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" "
         "content=\"default-src 'none'; "
         "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n<title>" +
         escape(title) + "</title><style>" + kStyle + style + "</style></head>\n<body><main>\n" + body +
         "</main><div id=\"tip\" role=\"tooltip\"></div><script>" + kScript + script + "</script></body></html>\n";
}

std::string table(const std::vector<Column>& columns, const std::vector<std::vector<TableCell>>& rows,
                  const std::string& id, bool filter, const std::string& example) {
  std::string s;
  if (filter && !id.empty())
    s += "<input type=\"search\" placeholder=\"Filter rows, e.g. " + escape(example) +
         "\" aria-label=\"Filter rows\" data-for=\"" +
         id + "\">\n";
  s += fmt::format("<div class=\"wrap{}\"><table{}><thead><tr>", rows.size() > 24 ? " tall" : "",
                   id.empty() ? "" : " id=\"" + id + "\"");
  for (const Column& c : columns)
    s += fmt::format("<th tabindex=\"0\"{}{}>{}</th>", c.numeric ? " class=\"n\"" : "",
                     c.hint.empty() ? "" : " data-t=\"" + escape(c.hint) + "\"", escape(c.heading));
  s += "</tr></thead><tbody>\n";
  for (const auto& row : rows) {
    s += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) {
      const TableCell& cell = row[i];
      s += "<td";
      if (i < columns.size() && columns[i].numeric)
        s += " class=\"n\"";
      else if (text_length(cell.text) > 40)
        s += " class=\"w\"";
      if (!cell.sort.empty()) s += " data-v=\"" + escape(cell.sort) + "\"";
      if (!cell.tip.empty()) s += " data-t=\"" + escape(cell.tip) + "\"";
      if (cell.bar >= 0) s += fmt::format(" style=\"--b:{:.0f}%\"", 100 * cell.bar);
      s += ">" + (cell.html.empty() ? escape(cell.text) : cell.html) + "</td>";
    }
    s += "</tr>\n";
  }
  return s + "</tbody></table></div>\n";
}

std::string panels(const nlohmann::ordered_json& list) {
  std::string s = "<div class=\"panels\">\n";
  for (const auto& panel : list) {
    s += "<div class=\"panel\"><h3>" + escape(panel.value("title", std::string())) + "</h3>";
    const std::string subtitle = panel.value("subtitle", std::string());
    s += "<div class=\"sub\">" + (subtitle.empty() ? "&nbsp;" : escape(subtitle)) + "</div>" + chart_svg(panel) +
         "</div>\n";
  }
  return s + "</div>\n";
}

}  // namespace thimble::dashboard
