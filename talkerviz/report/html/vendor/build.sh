#!/usr/bin/env bash
# Makes the minified files of this folder again, with npm: `bash talkerviz/report/html/vendor/build.sh`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here"/package.json "$here"/*.entry.js "$work"
cd "$work"
npm install --silent --no-audit --no-fund
bundle() {
  npx esbuild "$1.entry.js" --bundle --minify --format=iife --global-name="$1" --target=es2020 \
    --legal-comments=none --banner:js="/*! $2 */" --outfile="$here/$1.min.js" --log-level=warning
}
bundle echarts 'Apache ECharts 6.1.0, Copyright 2017-2026 The Apache Software Foundation, Apache-2.0; with zrender, BSD-3-Clause, and tslib, 0BSD'
bundle tabulator 'Tabulator 6.5.3, Copyright (c) 2015-2026 Oli Folkerd, MIT'
{
  echo '/*! svg-pan-zoom 3.6.2, Copyright 2009-2010 Andrea Leofreddi and others, BSD-2-Clause */'
  grep -v '^//' node_modules/svg-pan-zoom/dist/svg-pan-zoom.min.js
} >"$here/svg-pan-zoom.min.js"
cp node_modules/tabulator-tables/dist/css/tabulator.min.css "$here/tabulator.min.css"
sed -i '/sourceMappingURL/d' "$here/tabulator.min.css"
cp node_modules/echarts/LICENSE "$here/LICENSE.echarts"
cp node_modules/echarts/NOTICE "$here/NOTICE.echarts"
cp node_modules/echarts/licenses/LICENSE-d3 "$here/LICENSE.d3"
cp node_modules/zrender/LICENSE "$here/LICENSE.zrender"
cp node_modules/tslib/LICENSE.txt "$here/LICENSE.tslib"
cp node_modules/svg-pan-zoom/LICENSE "$here/LICENSE.svg-pan-zoom"
cp node_modules/tabulator-tables/LICENSE "$here/LICENSE.tabulator"
